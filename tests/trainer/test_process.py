"""What a rank asks of the system."""

import platform
import subprocess
import sys

import pytest

_PAGE_FAULTS = """
import resource, sys
from trainer.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
bytearray(1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is told")
def test_memory_that_was_freed_is_taken_again_without_new_pages() -> None:
    faults = {
        name: int(subprocess.run([sys.executable, "-c", _PAGE_FAULTS, name], check=True, capture_output=True, text=True).stdout)
        for name in ("keep", "leave")
    }
    assert faults["keep"] < 100 < faults["leave"]
