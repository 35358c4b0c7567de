"""What the demo corpus is made of: documentation, prose and source files of the Python installation that runs it.

Modules are parsed with `ast`, never imported; a file that cannot be read or parsed is passed over (this is the maker of a demo corpus,
not a reader of one: the books of the pipeline begin with the files that are written here).
"""

import ast
import hashlib
import importlib.metadata
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import cast

# Folders that not every installation has (distributors leave tests out), or that hold machine-made or foreign files.
_SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__", "_vendor", "vendored"}
# Dependencies of olmoflow with much documentation, so present wherever it is installed; read in this order after the standard library.
_DOCUMENTED_PACKAGES = ("numpy", "networkx", "torch/nn", "torch/optim", "pandas/core", "fsspec", "pydantic", "sqlalchemy", "prefect")
_SHORTEST_DOCSTRING = 80  # characters; shorter ones say little
_LONGEST_DESCRIPTION = 20_000  # characters
_OWN_PACKAGE = "olmoflow"  # its own description changes with every commit; the corpus should not
_BADGE_LINE = re.compile(r"^\s*(\[?!\[.*|\.\. (image|\|.*\| image)::.*|:(target|alt|width|height):.*|<.*>)\s*$")


@dataclass(frozen=True)
class Docstring:
    """The documentation of one function or class."""

    module: str  # dotted
    name: str  # qualified within the module
    is_class: bool
    text: str
    signature: str  # `name(parameters)` as the source spells it; a class has the parameters of its `__init__`, if it defines one
    positional: tuple[str, ...]  # names of its positional parameters, without `self`
    parameters: tuple[str, ...]  # the same and those that are keyword-only

    @property
    def key(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Module:
    """One parsed source file."""

    name: str  # dotted
    text: str  # its own docstring, or empty
    docstrings: tuple[Docstring, ...]


def fraction(seed: int, *parts: str) -> float:
    """A number in [0, 1) that depends on the seed and the parts only: the corpus' source of arbitrary, repeatable choices."""
    digest = hashlib.blake2b("\0".join((str(seed), *parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def standard_library_files(seed: int) -> list[tuple[str, Path]]:
    """(dotted name, path) of the standard library's sources, in a seeded order so that a small corpus is still a varied one."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(_python_files(root, ""), key=lambda item: fraction(seed, "order", item[0]))


def modules(seed: int) -> Iterator[Module]:
    """Documented modules: the standard library, then the dependencies with most documentation, then whatever else is installed."""
    for name, path in standard_library_files(seed):
        yield from _parse(name, path)
    packages = Path(sysconfig.get_path("purelib"))
    others = sorted(item.name for item in packages.iterdir() if (item / "__init__.py").is_file()) if packages.is_dir() else []
    preferred = {name.split("/")[0] for name in _DOCUMENTED_PACKAGES}
    for package in (*_DOCUMENTED_PACKAGES, *(name for name in others if name not in preferred)):
        for name, path in sorted(_python_files(packages / package, package.replace("/", "."))):
            yield from _parse(name, path)


def _python_files(root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for folder, subfolders, names in os.walk(root):
        # config-* and _sysconfigdata hold this machine's build flags.
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS and not name.startswith("config-"))
        parts = [prefix] * bool(prefix) + list(Path(folder).relative_to(root).parts)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield ".".join(parts if name == "__init__.py" and parts else [*parts, name.removesuffix(".py")]), Path(folder, name)


def read_source(path: Path) -> str | None:
    """The text of a source file, or None where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _parse(name: str, path: Path) -> Iterator[Module]:
    source = read_source(path)
    if source is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources are not our news
            tree = ast.parse(source)
            yield Module(name, _docstring(tree), tuple(_docstrings(tree, name, "")))
    except (SyntaxError, ValueError, RecursionError):
        return


def _docstring(node: ast.AST) -> str:
    text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else None
    text = (text or "").strip()
    return text if text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable() else ""


def _docstrings(parent: ast.Module | ast.ClassDef, module: str, prefix: str) -> Iterator[Docstring]:
    for node in parent.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        text = _docstring(node)
        if len(text) >= _SHORTEST_DOCSTRING:
            name, arguments = prefix + node.name, _arguments(node)
            positional = tuple(item.arg for item in (*arguments.posonlyargs, *arguments.args) if item.arg not in ("self", "cls"))
            parameters = (*positional, *(item.arg for item in arguments.kwonlyargs))
            signature = f"{name}({ast.unparse(arguments)})"
            yield Docstring(module, name, isinstance(node, ast.ClassDef), text, signature, positional, parameters)
        if isinstance(node, ast.ClassDef):
            yield from _docstrings(node, module, f"{prefix}{node.name}.")


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.arguments:
    if not isinstance(node, ast.ClassDef):
        return node.args
    makers = [item.args for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return makers[0] if makers else ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])


def reference_topics() -> dict[str, str]:
    """The language reference's topics, which `help()` shows: title -> article. Empty where the installation has none."""
    source = read_source(Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py")
    try:
        assignment = ast.parse(source or "").body[-1]
        found = ast.literal_eval(assignment.value) if isinstance(assignment, ast.Assign) else {}
    except (SyntaxError, ValueError, IndexError):
        return {}
    return {title: text.strip() for title, text in found.items()} if isinstance(found, dict) else {}


def descriptions() -> list[tuple[str, str, str]]:
    """(distribution, one-line summary, long description without its badges) of what is installed, by name."""
    found: dict[str, tuple[str, str, str]] = {}
    for distribution in importlib.metadata.distributions():
        metadata = cast(Message, distribution.metadata)
        name = str(metadata.get("Name") or "").lower().replace("_", "-")
        body = metadata.get_payload() or metadata.get("Description") or ""
        if not name or name == _OWN_PACKAGE or not isinstance(body, str):
            continue
        text = "\n".join(line.rstrip() for line in body.splitlines() if not _BADGE_LINE.match(line)).strip()
        if len(text) >= 200:
            found[name] = (name, str(metadata.get("Summary") or ""), re.sub(r"\n{3,}", "\n\n", text[:_LONGEST_DESCRIPTION]))
    return [found[name] for name in sorted(found)]


def boilerplate() -> list[tuple[str, str]]:
    """(name, text) of what nobody reads for pleasure: licences and file lists of installed distributions, each text once."""
    found: dict[str, str] = {}
    for folder in sorted(Path(sysconfig.get_path("purelib")).glob("*.dist-info")):
        name = folder.name.split("-")[0].lower()
        if name == _OWN_PACKAGE:
            continue
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name.lower().startswith(("licen", "copying", "notice", "authors")):
                found.setdefault((read_source(path) or "").strip(), f"{name}/{path.name}")
        listing = read_source(folder / "RECORD") or ""
        # Hashes and sizes are cut away; lines that pip adds (its own marks, compiled files) depend on how the package was installed.
        files = [
            line.split(",")[0] for line in listing.splitlines() if ".dist-info/" not in line and not line.split(",")[0].endswith(".pyc")
        ]
        found.setdefault("\n".join(files[:120]), f"{name}/files")
    return sorted((name, text[:_LONGEST_DESCRIPTION]) for text, name in found.items() if len(text) >= 200)
