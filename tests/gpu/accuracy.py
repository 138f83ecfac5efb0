"""pytest -p tests.gpu.accuracy: how far approximate functions go beyond bound (a) of exact ones, told at the end.

Alone or with the workers of pytest-xdist.
"""

from __future__ import annotations

import pytest

from tests.kernels import bounds

KEY = "used of bound (a)"
found: list[tuple[float, str]] = []  # the most that a test has used, and its name


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item):
    bounds.used_by_approximations.clear()
    yield
    if bounds.used_by_approximations:
        item.user_properties.append((KEY, max(bounds.used_by_approximations)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        found.extend((value, report.nodeid) for key, value in report.user_properties if key == KEY)


def pytest_terminal_summary(terminalreporter) -> None:
    if found:
        beyond, (most, test) = sum(value > 1 for value, _ in found), max(found)
        terminalreporter.write_line(
            f"bound (a) for exact functions: {beyond} of {len(found)} tests beyond it, {most:.2f} times in {test}"
        )
