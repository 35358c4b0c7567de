"""Token ids with an index that fits them, and selections that give each document that is left out its reason."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from tasks import select, tokenize
from tasks.documents import DocumentWriter, document_key
from tasks.errors import UserError
from tasks.filters import Filter
from tasks.shards import Shard, ShardRef
from tasks.tokenize import TokenizeWhere
from tasks.tokenizer import Tokenizer, train_bpe

MASK = 2**64 - 1
TEXTS = [
    "The quick model reads a long document.",
    "",
    "naïve Straße 日本語 👩‍👧\r\n\ttabs  and   spaces ",
    "again and " * 60,
    "again and " * 20,
    "def f(x):\n    return x + 1234567\n",
    "a",
    "What is 3 plus 4? It is 7.",
]
VOTES = [3, 0, 1, 5, 2, None, 4, 1]
QUALITY = [0.9, 0.8, 0.7, 0.6, None, 0.4, 0.1, 0.2]


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(iter([*TEXTS, "again and again the quick model"] * 3), 320, folder)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def eos(tokenizer_files):
    return Tokenizer.load(tokenizer_files["ranks.tiktoken"].parent).eos_id


@pytest.fixture(scope="module")
def plain(tokenizer_files):
    """The ids of a text by Hugging Face's own encoder, which shares no code with ours."""
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer_files["tokenizer.json"]))
    return lambda text: encoder.encode(text, add_special_tokens=False).ids


def write_documents(path, texts=TEXTS, votes=VOTES, row_group=3):
    writer = DocumentWriter(path, "web", {"votes": pa.int64()})
    for number, (text, vote) in enumerate(zip(texts, votes, strict=True)):
        writer.write(str(number), text, None, None, {}, {"votes": vote})
        if number % row_group == row_group - 1:
            writer.flush()
    writer.close()
    return path


class Made:
    """Tokens and index of a run of the step."""

    def __init__(self, folder, books) -> None:
        self.files = {name: folder / name for name in ("tokens.npy", "index.parquet")}
        self.tokens = np.fromfile(self.files["tokens.npy"], "<u4")
        self.index = pq.read_table(self.files["index.parquet"])
        self.books = books

    def rows(self) -> list[int]:
        return self.index["row"].to_pylist()

    def of(self, entry: dict) -> list[int]:
        return self.tokens[entry["start"] : entry["start"] + entry["length"]].tolist()


@pytest.fixture
def run(tmp_path, tokenizer_files):
    """Tokenize documents with a cut, without a store."""
    count = iter(range(100))

    def tokenized(where: TokenizeWhere | None = None, scores=None, **documents) -> Made:
        folder = tmp_path / f"tokens{next(count)}"
        folder.mkdir()
        where = where or TokenizeWhere()
        inputs = {"documents": [{"documents.parquet": write_documents(tmp_path / "documents.parquet", **documents)}]}
        inputs |= {"scores": [{"scores.parquet": path} for path in scores or []], "tokenizer": [tokenizer_files]}
        books = tokenize.run(Shard({"tokenize_where": where.model_dump(mode="json")}, inputs, folder, name="web"))
        books.balance("tokenize")
        return Made(folder, books)

    return tokenized


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"quality": pa.array(QUALITY, pa.float64())}), path)
    return path


# -- tokenize --------------------------------------------------------------------------------------------------------------------------


def test_each_document_lies_where_the_index_says_closed_by_one_eos(run, plain, eos):
    made = run()
    entries = made.index.to_pylist()
    assert [entry["row"] for entry in entries] == list(range(len(TEXTS)))
    for entry, text in zip(entries, TEXTS, strict=True):
        assert made.of(entry) == [*plain(text), eos]
        assert entry["bytes"] == len(text.encode())
        assert entry["key"] == document_key("web", str(entry["row"]))


def test_the_documents_fill_the_file_without_gaps_over_all_row_groups(run):
    made = run()
    starts, lengths = made.index["start"].to_numpy(), made.index["length"].to_numpy()
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1]]
    assert len(made.tokens) == lengths.sum() and made.files["tokens.npy"].stat().st_size == 4 * lengths.sum()
    assert made.index.schema.types == [pa.int64(), pa.uint64(), pa.int64(), pa.int32(), pa.int64(), pa.bool_()]


def test_the_books_count_tokens_bytes_and_documents(run):
    books = run().books
    assert (books.read, books.kept, books.dropped) == (8, 8, {})
    lengths = run().index["length"].to_pylist()
    assert books.counts == {"encoded": 8, "tokens": sum(lengths), "bytes": sum(len(text.encode()) for text in TEXTS), "repeated": 1}


def test_only_a_document_with_a_long_repetition_is_marked(run):
    assert run().index["repeated"].to_pylist() == [text.count("again and ") >= 32 for text in TEXTS]


def test_a_text_that_writes_a_control_token_is_no_end_of_document(run, eos):
    made = run(texts=["one <|endoftext|> two", "<|endoftext|>"], votes=[1, 1])
    for entry in made.index.to_pylist():
        assert made.of(entry).count(eos) == 1 and made.of(entry)[-1] == eos


def test_where_leaves_documents_unencoded_with_their_reason(run, plain, eos):
    made = run(TokenizeWhere(filters=[Filter(column="votes", min=2)]))
    assert made.rows() == [0, 3, 4, 6]
    assert made.tokens.tolist() == [token for row in made.rows() for token in [*plain(TEXTS[row]), eos]]
    assert made.index["start"].to_pylist()[0] == 0
    assert made.books.dropped == {"votes < 2": 3, "votes is null": 1}
    assert (made.books.read, made.books.kept, made.books.counts["encoded"]) == (8, 4, 4)


def test_where_may_read_scores(run, scores):
    made = run(TokenizeWhere(filters=[Filter(column="quality", min=0.5), Filter(column="votes", max=3)]), [scores])
    assert made.rows() == [0, 1, 2]
    assert made.books.dropped == {"quality < 0.5": 3, "quality is null": 1, "votes > 3": 1}


def test_where_may_leave_out_a_whole_row_group_or_everything(run, plain, eos):
    assert run(TokenizeWhere(filters=[Filter(column="votes", min=4)])).rows() == [3, 6]  # nothing of the first three
    nothing = run(TokenizeWhere(filters=[Filter(column="votes", min=9)]))
    assert len(nothing.tokens) == 0 and nothing.index.num_rows == 0 and nothing.index.schema == tokenize.SCHEMA


def test_a_shard_without_documents_has_an_empty_index(run):
    made = run(texts=[], votes=[])
    assert len(made.tokens) == 0 and made.index.num_rows == 0 and made.books.read == 0


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_a_share_is_taken_by_hash_and_a_smaller_one_lies_in_a_larger_one(run):
    texts, votes = [f"text {i}" for i in range(60)], [i % 3 for i in range(60)]
    places = [splitmix64(document_key("web", str(i)) ^ splitmix64(0)) / 2**64 for i in range(60)]
    taken = {}
    for share in (0.1, 0.4, 0.9, 1.0):
        made = run(TokenizeWhere(share=share), texts=texts, votes=votes)
        assert made.rows() == [i for i, place in enumerate(places) if place < share]
        outside = 60 - len(made.rows())
        assert made.books.dropped == ({f"outside the share of {share:g}": outside} if outside else {})
        taken[share] = set(made.rows())
    assert taken[0.1] < taken[0.4] < taken[0.9] < taken[1.0] == set(range(60))


def test_a_share_is_of_what_the_filters_leave_and_does_not_hide_their_reasons(run):
    texts, votes = [f"text {i}" for i in range(60)], [i % 3 for i in range(60)]
    filters = [Filter(column="votes", min=1)]
    half, cut = run(TokenizeWhere(share=0.5), texts=texts, votes=votes), run(TokenizeWhere(filters=filters), texts=texts, votes=votes)
    both = run(TokenizeWhere(filters=filters, share=0.5), texts=texts, votes=votes)
    assert set(both.rows()) == set(half.rows()) & set(cut.rows())
    assert both.books.dropped["votes < 1"] == 20


def test_a_cut_on_what_is_known_only_after_tokenizing_is_told(run):
    with pytest.raises(UserError, match="wants the column repeated"):
        run(TokenizeWhere(filters=[Filter(column="repeated", equals=False)]))


def test_scores_are_an_input_of_the_key_only_where_the_cut_reads_columns():
    def key(where, scores):
        task = tokenize.task("web", where, ShardRef("ingest", "d"), [ShardRef("score", s) for s in scores], ShardRef("tokenizer", "t"))
        return task.key(tokenize.STEP)

    cut = TokenizeWhere(filters=[Filter(column="quality", min=0.5)])
    assert key(TokenizeWhere(), ["a"]) == key(TokenizeWhere(), ["b"]) == key(TokenizeWhere(), [])
    assert len({key(TokenizeWhere(), []), key(TokenizeWhere(share=0.5), []), key(cut, ["a"]), key(cut, ["b"])}) == 4


# -- select ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def selection(run, scores, tmp_path):
    """(keep, reason, books) of documents whose tokens were made with a cut."""

    def selected(filters, where: TokenizeWhere | None = None, **documents):
        where = where or TokenizeWhere()
        made = run(where, [] if documents else [scores], **documents)
        config = {"filters": [rule.model_dump(mode="json") for rule in filters], "tokenize_where": where.model_dump(mode="json")}
        inputs = {"documents": [{"documents.parquet": tmp_path / "documents.parquet"}], "tokens": [made.files]}
        inputs["scores"] = [] if documents else [{"scores.parquet": scores}]
        books = select.run(Shard(config, inputs, tmp_path, name="web"))
        books.balance("select")
        table = pq.read_table(tmp_path / "selection.parquet")
        return table["keep"].to_pylist(), table["reason"].to_pylist(), books, made

    return selected


def test_without_filters_everything_is_kept(selection):
    keep, reasons, books, made = selection([])
    assert keep == [True] * 8 and reasons == [None] * 8
    assert (books.read, books.kept, books.dropped, books.counts) == (8, 8, {}, {"tokens": len(made.tokens)})


def test_each_document_left_out_has_its_first_reason(selection):
    keep, reasons, books, made = selection(
        [Filter(column="votes", min=1), Filter(column="quality", min=0.3), Filter(column="repeated", equals=False)]
    )
    assert reasons == [None, "votes < 1", None, "repeated", "quality is null", "votes is null", "quality < 0.3", "quality < 0.3"]
    assert keep == [reason is None for reason in reasons]
    assert books.dropped == {"votes < 1": 1, "repeated": 1, "quality is null": 1, "votes is null": 1, "quality < 0.3": 2}
    lengths = made.index["length"].to_pylist()
    assert books.counts["tokens"] == lengths[0] + lengths[2]


def test_what_was_not_tokenized_says_so_whatever_the_filters_say(selection):
    where = TokenizeWhere(filters=[Filter(column="votes", min=2)])
    keep, reasons, books, _ = selection([Filter(column="votes", min=3), Filter(column="repeated", equals=False)], where)
    assert reasons == [
        None,
        "not tokenized: votes < 2",
        "not tokenized: votes < 2",
        "repeated",
        "votes < 3",
        "not tokenized: votes is null",
        None,
        "not tokenized: votes < 2",
    ]
    assert keep == [reason is None for reason in reasons]
    assert books.dropped == {"not tokenized: votes < 2": 3, "not tokenized: votes is null": 1, "repeated": 1, "votes < 3": 1}


def test_a_document_that_was_not_tokenized_is_never_selected_though_all_filters_let_it_pass(selection):
    where = TokenizeWhere(share=0.5)
    texts, votes = [f"text {i}" for i in range(20)], [i % 2 for i in range(20)]
    keep, reasons, books, made = selection([], where, texts=texts, votes=votes)
    assert [row for row, kept in enumerate(keep) if kept] == made.rows()
    assert set(reasons) == {None, "not tokenized: outside the share of 0.5"}
    assert books.counts["tokens"] == len(made.tokens)


def test_filters_may_read_the_number_of_tokens(selection):
    keep, _, _, made = selection([Filter(column="tokens", min=10, max=100)])
    assert keep == [10 <= length <= 100 for length in made.index["length"].to_pylist()]
    assert 0 < sum(keep) < 8


def test_a_shard_without_documents_selects_nothing(selection):
    keep, reasons, books, _ = selection([Filter(column="votes", min=1)], texts=[], votes=[])
    assert keep == reasons == [] and books.read == 0


def test_a_score_named_like_a_column_of_the_source_is_told(run, tmp_path):
    pq.write_table(pa.table({"votes": [1.0] * 8}), tmp_path / "clash.parquet")
    with pytest.raises(UserError, match="two columns are called votes"):
        run(None, [tmp_path / "clash.parquet"])
