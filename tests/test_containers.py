"""The container files hold what the repository says: its packages, its lock file, its variable, a Python that it supports."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tasks.environment import CONTAINER

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(params=["cpu", "gpu"])
def instructions(request) -> list[tuple[str, str]]:
    text = (ROOT / "deployments/containers" / f"Containerfile.{request.param}").read_text().replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def of(instructions, name: str) -> list[str]:
    return [rest for instruction, rest in instructions if instruction == name]


def test_all_that_an_installation_needs_is_copied_and_is_there(instructions):
    copied = {name for rest in of(instructions, "COPY") for name in shlex.split(rest)[:-1]}
    packages = {name.split(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert copied >= packages | {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert all((ROOT / name).exists() for name in copied)


def test_versions_are_those_of_the_lock_file_which_stays_beside_the_code(instructions):
    (install,) = [rest for rest in of(instructions, "RUN") if "pip install" in rest]
    words = shlex.split(install)
    assert words[words.index("--constraint") + 1] == "constraints.txt"
    extras = re.fullmatch(r"\.\[(.*)\]", words[words.index("--editable") + 1])[1].split(",")
    assert set(extras) <= PROJECT["project"]["optional-dependencies"].keys()


def test_python_is_one_that_the_project_supports(instructions):
    (base,) = of(instructions, "FROM")
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(re.search(r"python:([\d.]+)", base)[1])


def test_the_digest_has_its_place_and_nothing_runs_as_root(instructions):
    assert f'{CONTAINER}=""' in of(instructions, "ENV")
    names = [name for name, _ in instructions]
    assert of(instructions, "USER")[-1] not in ("root", "0") and names.index("USER") > max(
        n for n, name in enumerate(names) if name == "RUN"
    )
