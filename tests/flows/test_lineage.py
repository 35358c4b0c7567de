"""`lineage` tells all that an artifact descends from, or that descends from it, once each; compared with the manifests read by hand."""

import json

import pytest
from small_store import make, small
from typer.testing import CliRunner

from flows import cli
from flows.lineage import as_json, lineage, lines, tree
from tasks.errors import UserError
from tasks.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    config = small(tmp_path_factory.mktemp("lineage"))
    make(config)
    return Store(config["store"])


def manifests(store) -> dict:
    return {manifest["id"]: manifest for manifest in store.manifests()}


def of(store, step: str) -> str:
    (found,) = [name for name, manifest in manifests(store).items() if manifest["step"] == step]
    return found


def ancestors(known: dict, name: str) -> set[str]:
    return {name}.union(*(ancestors(known, each) for each in known[name]["inputs"]))


def told(store, name: str, down: bool) -> set[str]:
    return {each["id"] for each in as_json(lineage(store, name, down), down)["artifacts"]}


def test_an_artifact_descends_from_all_that_its_manifests_name_and_the_other_way_round(store):
    known = manifests(store)
    for name in known:
        assert told(store, name, down=False) == ancestors(known, name)
        assert told(store, name, down=True) == {other for other in known if name in ancestors(known, other)}


def test_the_tree_leads_from_a_mix_to_the_raw_files_and_tells_each_branch_once(store):
    shown = list(lines(lineage(store, of(store, "mix"), down=False), down=False))
    assert shown[0].startswith(f"mix pre  {of(store, 'mix')}  ") and ", made 20" in shown[0]
    ingest = of(store, "ingest")
    (place,) = [number for number, line in enumerate(shown) if ingest in line and "see above" not in line]
    assert "60 records, 3 shards" in shown[place]
    assert shown[place + 1].strip().startswith("3 raw files, ") and shown[place + 1].endswith(": 0.jsonl, 1.jsonl, 2.jsonl")
    depth = [len(line) - len(line.lstrip()) for line in shown]
    assert depth[0] == 0 and depth[place + 1] == depth[place] + 2
    assert any(line.endswith(f"{ingest}, see above") for line in shown)


def test_the_tree_of_a_terminal_has_the_same_lines(store):
    start = lineage(store, of(store, "mix"), down=False)

    def labels(branch) -> list[str]:
        return [branch.label, *(label for each in branch.children for label in labels(each))]

    assert labels(tree(start, down=False)) == [line.strip() for line in lines(start, down=False)]


def test_an_input_that_is_gone_is_told(store, tmp_path):
    name = of(store, "select")
    manifest = manifests(store)[name]
    alone = Store(str(tmp_path))
    alone.replace(f"artifacts/select/{name}.json", json.dumps(manifest))
    shown = list(lines(lineage(alone, name, down=False), down=False))
    assert [line.strip() for line in shown[1:]] == [f"{each}: not in the store any more" for each in manifest["inputs"]]


def test_an_id_that_is_none_or_two_is_refused(store):
    with pytest.raises(UserError, match=r"0 artifacts .* begin with nothing"):
        lineage(store, "nothing", down=False)
    with pytest.raises(UserError, match=r"[2-9] artifacts .* begin with to"):
        lineage(store, "to", down=False)


def test_the_command_tells_lines_or_json(store):
    name = of(store, "ingest")
    plain = CliRunner().invoke(cli.app, ["lineage", name, "--store", store.url])
    assert plain.exit_code == 0 and plain.stdout.startswith(f"ingest web  {name}  60 records")
    answer = json.loads(CliRunner().invoke(cli.app, ["lineage", name, "--store", store.url, "--down", "--json"]).stdout)
    assert answer["direction"] == "down" and {each["id"] for each in answer["artifacts"]} == told(store, name, down=True)
