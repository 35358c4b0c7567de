"""What every test may rely on, and how many faults were survived."""

import json
import signal

import pytest

# A shell without job control starts what runs in its background with SIGINT ignored, and commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

survived: list[bool] = []  # of each test that injects a fault


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if item.get_closest_marker("fault") and not report.skipped and (report.when == "call" or report.failed):
        survived.append(report.passed)
    return report


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    """The last line of a session that injected faults, as a benchmark's."""
    if survived:
        share = round(sum(survived) / len(survived), 4)
        print(
            json.dumps({"faults_survived_share": {"value": share, "low": share, "high": share, "unit": "share", "rounds": len(survived)}})
        )
