"""Provenance: names of folders, the commit, and the warning that a machine was busy."""

import os
import time
from types import SimpleNamespace

import pytest

from ssmvdm.report import environment


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC 9R45", "amd-epyc-9r45"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-2-20ghz"),
        ("13th Gen Intel(R) Core(TM) i7-1360P", "13th-gen-intel-core-i7-1360p"),
        ("../..", "unknown"),
    ],
)
def test_device_slugs_are_plain_folder_names(name, slug):
    assert environment.device_slug(name) == slug


def test_a_busy_machine_is_said_to_be_busy():
    assert environment.busy_warning({"load_before": 0.1, "cores": 2}) == ""
    assert environment.busy_warning({"load_before": None, "cores": 2}) == ""
    assert "load 3.5 on 2 cores" in environment.busy_warning({"load_before": 3.5, "cores": 2})


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the time that cores were busy is read from Linux's /proc")
def test_work_is_seen_while_it_is_done():
    before, end = environment._busy_seconds(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert environment._busy_seconds() - before > 0.2


def test_the_load_is_what_is_busy_now_or_where_that_is_not_known_was_in_the_last_minute(monkeypatch):
    now, busy = iter((10.0, 10.5)), iter((100.0, 100.75))
    clock = SimpleNamespace(perf_counter=lambda: next(now), sleep=lambda seconds: None)
    monkeypatch.setattr(environment, "time", clock)
    monkeypatch.setattr(environment, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.25, 1.0, 1.0))
    assert environment.load() == 1.5

    def unknown():
        raise FileNotFoundError

    monkeypatch.setattr(environment, "_busy_seconds", unknown)
    monkeypatch.setattr(clock, "perf_counter", time.perf_counter)
    assert environment.load() == 0.25


def test_everything_needed_to_repeat_a_run_is_described():
    found = environment.describe(2)
    assert found["threads"] == 2
    for key in ("device", "torch", "commit", "date", "backends", "vector_extension"):
        assert found[key]
    assert environment.one_line(found).startswith(f"{found['device']}, 2 threads · ")
    assert environment.one_line(found | {"threads": 1}).startswith(f"{found['device']}, 1 thread · ")
