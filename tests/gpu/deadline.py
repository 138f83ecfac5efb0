"""pytest -p tests.gpu.deadline --stop-after SECONDS: a session that ends in time, with its failures and its summary.

Alone or with the workers of pytest-xdist; between two tests, so a little later than asked.
"""

from __future__ import annotations

import time

import pytest

MESSAGE = "the time for these tests is up"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stop-after", type=float, required=True)


class Deadline:
    def __init__(self, end: float):
        self.end = end
        self.stoppable: object | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.stoppable = session.config.pluginmanager.getplugin("dsession") or session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if time.monotonic() > self.end:
            self.stoppable.shouldstop = MESSAGE  # type: ignore[attr-defined]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the workers stop when they are told to
        config.pluginmanager.register(Deadline(time.monotonic() + config.getoption("stop_after")))
