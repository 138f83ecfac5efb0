"""Registers, spills and shared memory of the kernels as nvcc compiles them, held to a committed table."""

from __future__ import annotations

import pytest

from . import build, device_code, resources

needs_nvcc = pytest.mark.skipif(build.find_nvcc() is None, reason="nvcc was not found")


def test_the_table_is_of_these_sources():
    assert resources.committed()[0] == resources.fingerprint(), "stale: make cuda-resources"


def test_no_kernel_spills():
    table = resources.committed()[1]
    assert table and not resources.too_much(table)


def test_spills_are_read_from_the_words_of_ptxas():
    log = """
ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
    8 bytes stack frame, 100 bytes spill stores, 140 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 96 bytes smem
"""
    found = resources.parsed(log)
    assert found == {"_Z1kv": resources.Resources(80, 140, 96)}
    assert resources.too_much({"k": {"sm_90": found["_Z1kv"]}}) == ["k spills 140 bytes on sm_90, more than 64"]


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", device_code.ARCHITECTURES)
def test_compiled_again_it_is_the_same(architecture):
    committed = resources.committed()[1]
    again = resources.measured((architecture,))
    if device_code.nvcc_version() in resources.TABLE.read_text():
        assert again == {name: {architecture: entry[architecture]} for name, entry in committed.items()}
    assert not resources.too_much(again)
