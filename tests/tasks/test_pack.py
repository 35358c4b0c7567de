import csv
import gzip
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.errors import UserError
from tasks.mix_plan import extents, join_extents
from tasks.pack import pack

EOS, LENGTH = 99_999, 16


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[Path], pa.Table]:
    """Three token files of documents of 1 to 40 tokens, none of a length that is a multiple of LENGTH; and their index, out of order."""
    rng = np.random.default_rng(5)
    files, rows = [], []
    for number in range(3):
        tokens: list[int] = []
        for row in range(20):
            body = rng.integers(1, 50_000, rng.integers(0, 40)).tolist()
            rows.append((number, len(tokens), len(body) + 1, 1000 * number + row, f"s{number}", row))
            tokens += [*body, EOS]
        tokens[0] += len(tokens) % LENGTH == 0
        files.append(tmp_path / f"{number}.npy")
        files[-1].write_bytes(np.array(tokens, "<u4").tobytes())
        assert len(tokens) % LENGTH
    names = ("file", "start", "length", "key", "source", "row")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return files, table.set_column(3, "key", table["key"].cast(pa.uint64()))


def mix_of(table: pa.Table, copies: np.ndarray) -> np.ndarray:
    file, start, length = (table[name].to_numpy() for name in ("file", "start", "length"))
    parts = [extents(file[file == f], start[file == f], length[file == f], copies[file == f]) for f in (2, 0, 1)]
    return join_extents(parts)


def stream_of(mix: np.ndarray, files: list[Path]) -> np.ndarray:
    tokens = [np.fromfile(path, "<u4") for path in files]
    return np.concatenate([tokens[f][s : s + n] for f, s, n, _ in mix.tolist()])


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(0).permutation(table.num_rows))


COPIES = np.random.default_rng(8).integers(0, 4, 60).astype(np.uint16)


def test_packed_files_are_the_stream_cut_at_whole_instances_with_the_tail_in_the_last(
    corpus: tuple[list[Path], pa.Table], tmp_path: Path
) -> None:
    files, table = corpus
    mix = mix_of(table, COPIES)
    names, packed = pack(mix, files, shuffled(table), tmp_path / "out", LENGTH, max_file_tokens=5 * LENGTH + 3)
    parts = [np.fromfile(tmp_path / "out" / name, "<u4") for name in names]
    assert names[:2] == ["part-00000.npy", "part-00001.npy"] and len(names) > 5
    assert (np.concatenate(parts) == stream_of(mix, files)).all()
    assert {len(part) for part in parts[:-1]} == {5 * LENGTH} and len(parts[-1]) % LENGTH
    assert packed.tolist() == [[i, 0, len(part), sum(map(len, parts[: i + 1]))] for i, part in enumerate(parts)]


def test_the_csv_lists_every_document_with_its_place_in_dolmas_columns(corpus: tuple[list[Path], pa.Table], tmp_path: Path) -> None:
    files, table = corpus
    names, _ = pack(mix_of(table, COPIES), files, shuffled(table), tmp_path / "out", LENGTH, max_file_tokens=5 * LENGTH)
    # The oracle: documents copy by copy, source by source, cut by hand at every 5 * LENGTH tokens.
    rows = table.to_pylist()
    expected: list[list[list[str]]] = [[] for _ in names]
    at = 0
    for source in (2, 0, 1):
        for copy in range(3):
            for row, copies in zip(rows, COPIES, strict=True):
                if row["file"] == source and copies > copy:
                    for part in range(at // (5 * LENGTH), (at + row["length"] - 1) // (5 * LENGTH) + 1):
                        base = part * 5 * LENGTH
                        start, end = max(at, base) - base, min(at + row["length"], base + 5 * LENGTH) - base
                        expected[part].append([str(start), str(end), f"{row['key']:016x}", row["source"], str(row["row"])])
                    at += row["length"]
    for name, lines in zip(names, expected, strict=True):
        with gzip.open((tmp_path / "out" / name).with_suffix(".csv.gz"), "rt", newline="") as file:
            assert list(csv.reader(file)) == lines
    assert any(lines[-1][2] == following[0][2] for lines, following in itertools.pairwise(expected))  # some do straddle


def test_ids_are_used_where_they_are_at_hand_and_cannot_break_a_line(corpus: tuple[list[Path], pa.Table], tmp_path: Path) -> None:
    files, table = corpus
    ids = ['a,b "c"', "two\nlines", *(f"id{i}" for i in range(58))]
    with_ids = table.append_column("id", pa.array(ids)).set_column(4, "source", table["source"].dictionary_encode())
    pack(mix_of(table, np.ones(60, np.uint16)), files, with_ids, tmp_path / "out", LENGTH)
    with gzip.open(tmp_path / "out/part-00000.csv.gz", "rt", newline="") as file:
        read = list(csv.reader(file.read().splitlines()))
    assert {row[2] for row in read} == {"two lines" if name == "two\nlines" else name for name in ids}
    assert {row[3] for row in read} == {"s0", "s1", "s2"}


def test_packing_twice_gives_the_same_bytes(corpus: tuple[list[Path], pa.Table], tmp_path: Path) -> None:
    files, table = corpus
    for folder in ("one", "two"):
        pack(mix_of(table, COPIES), files, table, tmp_path / folder, LENGTH, max_file_tokens=7 * LENGTH)
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    header = (tmp_path / "one/part-00000.csv.gz").read_bytes()[:10]
    assert header[3:8] == bytes(5)  # no file name, and no time of making, which two quick runs could share by chance


def test_what_cannot_be_packed_is_said(corpus: tuple[list[Path], pa.Table], tmp_path: Path) -> None:
    files, table = corpus
    mix = mix_of(table, COPIES)
    with pytest.raises(UserError, match="has no tokens"):
        pack(mix[:0], files, table, tmp_path / "out", LENGTH)
    with pytest.raises(UserError, match="hold no instance of 16"):
        pack(mix, files, table, tmp_path / "out", LENGTH, max_file_tokens=15)
    with pytest.raises(UserError, match="index of documents does not cover"):
        pack(mix, files, table.slice(0, 55), tmp_path / "out", LENGTH)
    files[1].write_bytes(files[1].read_bytes()[:80])
    with pytest.raises(UserError, match=r"1\.npy holds 20 tokens"):
        pack(mix, files, table, tmp_path / "out", LENGTH)


def olmo_core_instances(paths: list[Path], work: Path) -> np.ndarray:
    data = pytest.importorskip("olmo_core.data")
    dataset = data.NumpyFSLDataset(
        *paths,
        sequence_length=LENGTH,
        pad_token_id=0,
        eos_token_id=EOS,
        vocab_size=100_352,
        dtype=np.uint32,
        include_instance_metadata=False,
    )
    dataset.work_dir = work
    dataset.prepare()
    return np.array([dataset[i]["input_ids"].numpy() for i in range(len(dataset))])


def test_olmo_core_reads_exactly_our_instances_from_packed_files(corpus: tuple[list[Path], pa.Table], tmp_path: Path) -> None:
    files, table = corpus
    mix = mix_of(table, COPIES)
    names, _ = pack(mix, files, table, tmp_path / "out", LENGTH, max_file_tokens=5 * LENGTH)
    ours = stream_of(mix, files)
    instances = len(ours) // LENGTH
    assert (
        olmo_core_instances([tmp_path / "out" / name for name in names], tmp_path) == ours[: instances * LENGTH].reshape(-1, LENGTH)
    ).all()


def test_olmo_core_drops_the_tail_of_each_file_which_is_why_packed_files_are_cut_so(
    corpus: tuple[list[Path], pa.Table], tmp_path: Path
) -> None:
    files, _table = corpus
    lengths = [path.stat().st_size // 4 for path in files]
    found = olmo_core_instances(files, tmp_path)
    assert len(found) == sum(n // LENGTH for n in lengths) < sum(lengths) // LENGTH
    second = np.fromfile(files[1], "<u4")
    assert (found[lengths[0] // LENGTH] == second[:LENGTH]).all()  # the second file begins anew


def test_olmo_core_reads_our_csv_of_documents(corpus: tuple[list[Path], pa.Table], tmp_path: Path) -> None:
    utils = pytest.importorskip("olmo_core.data.utils")
    files, table = corpus
    copies = np.ones(60, np.uint16)
    pack(mix_of(table, copies), files, table, tmp_path / "out", LENGTH)
    path = tmp_path / "out/part-00000.npy"
    listed = list(utils.iter_document_indices(path, use_array_if_local=False, dtype=np.uint32))
    ends = np.flatnonzero(np.fromfile(path, "<u4") == EOS) + 1
    assert listed == list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
