"""The hook that fails a test which takes longer than it may; conftest.py takes it in."""

import os
from collections.abc import Generator
from typing import Any

import pytest

LIMIT_S = 10.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that takes longer than it may: 10 seconds, or what its mark `limit(seconds)` says."""
    report = yield
    marker = item.get_closest_marker("limit")
    # A machine that is busy with other work stretches the limit; on an idle one the load stays near its cores.
    busy = min(4.0, max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1))))
    limit = busy * (float(marker.args[0]) if marker else LIMIT_S)
    if report.passed and report.duration > limit and not item.get_closest_marker("slow"):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid}: {report.when} took {report.duration:.1f} s, the limit is {limit:g} s; "
            "make it smaller, or mark it limit(seconds) or slow and say why"
        )
    return report
