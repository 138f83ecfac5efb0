"""Provenance: names of folders, the commit, and the warning that a machine was busy."""

import pytest

from benchmarks.measure import environment


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


def test_everything_needed_to_repeat_a_run_is_described():
    found = environment.describe(2)
    assert found["threads"] == 2
    for key in ("device", "torch", "commit", "date", "backends", "vector_extension"):
        assert found[key]
    assert found["device"] in environment.one_line(found)
