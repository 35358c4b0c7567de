import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.sources import RawFile

MakeRaw = Callable[..., RawFile]


@pytest.fixture
def raw(tmp_path: Path) -> MakeRaw:
    """Writes bytes to a file and hands it over as the steps would."""

    def make(content: bytes, name: str = "part-000") -> RawFile:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return existing(path)

    return make


def existing(path: Path) -> RawFile:
    return RawFile(str(path), path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def data() -> Path:
    """The folder of real samples; the tests on it are skipped where it is not."""
    default = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("OLMOFLOW_DATA", default))
    if not folder.is_dir():
        pytest.skip("no folder of real samples: set OLMOFLOW_DATA")
    return folder
