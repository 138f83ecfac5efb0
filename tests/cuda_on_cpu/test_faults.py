"""Every checker finds the faults that it is for: kernels that are wrong on purpose, in each build."""

from __future__ import annotations

import functools
import re

import pytest

from . import build, faults

NOTHING, WRONG = r"", r"wrong values"  # what a build says that only runs the kernel
UNWRITTEN = r"read of what no thread of the block wrote"
DEADLOCK = r"wait for one another for ever: .*faults\.cu:\d+"
# fault -> what each build says: (fast, asan, race), or one sentence for all
EXPECTED = {
    "missing_barrier": (WRONG, WRONG, r"race in shared memory .*faults\.cu:\d+"),
    "missing_second_barrier": (NOTHING, NOTHING, r"race in shared memory .*write and read"),
    "missing_syncwarp": (WRONG, WRONG, r"race in shared memory .*faults\.cu:\d+"),
    "shuffle_for_a_barrier": (NOTHING, NOTHING, r"race in shared memory .*read and write"),
    "barrier_of_others": (WRONG, WRONG, r"race in shared memory"),
    "blocks_write_one_place": (WRONG, WRONG, r"race in global memory .*write of what another block wrote"),
    "block_reads_another": (WRONG, WRONG, r"race in global memory .*what another block (read|wrote)"),
    "sum_by_atomics": r"atomic accesses",
    "exit_before_a_barrier": DEADLOCK,
    "barrier_in_a_branch": r"faults\.cu:\d+: threads of a block are at different barriers, others at .*faults\.cu:\d+",
    "barrier_without_a_warp": DEADLOCK,
    "barrier_counts_differ": r"barrier 2 is for 128 threads, but others wait there for 96",
    "shuffle_without_a_lane": DEADLOCK,
    "shuffles_do_not_match": r"warp operations do not match",
    "mask_without_the_source": r"lane 0 reads from lane 1, which the mask 55555555 does not name",
    "mask_without_the_lane": r"lane 30 reads from lane 31, which the mask 7fffffff does not name",
    "read_past_the_end": (NOTHING, r"heap-buffer-overflow .*faults\.cu:\d+", NOTHING),
    "write_before_the_start": (NOTHING, r"heap-buffer-overflow .*faults\.cu:\d+", NOTHING),
    "past_dynamic_shared_memory": (NOTHING, r"heap-buffer-overflow .*faults\.cu:\d+", r"another block"),
    "past_static_shared_memory": (NOTHING, r"index 128 out of bounds .*faults\.cu:\d+", NOTHING),
    "past_static_shared_memory_by_pointer": (NOTHING, r"insufficient space .*faults\.cu:\d+", NOTHING),
    "dynamic_shared_not_written": (WRONG, WRONG, UNWRITTEN),
    "static_shared_not_written": (WRONG, WRONG, UNWRITTEN),
    "misaligned_vector": (NOTHING, r"misaligned address .*16 byte alignment.*faults\.cu:\d+", NOTHING),
    # It reads up to 512 bytes before its tensor, where shared memory may lie.
    "offset_beyond_32_bits": (WRONG, r"signed integer overflow.*faults\.cu:\d+", rf"{WRONG}|{UNWRITTEN}"),
    "block_beyond_launch_bounds": r"faults\.cu:\d+: a block of 128 threads, and the launch bounds allow 64",
    "grid_too_high": r"a grid has .* 65535 blocks, not \(3, 65536, 1\)",
    "block_too_large": r"a block has 1 \.\. 1024 threads",
    "too_much_shared_memory": r"a block has at most 232448 bytes of shared memory, not 232449",
    "stream_of_another_device": r"launched on the stream of device 1, the current one is 0",
}
pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@functools.cache
def verdicts(mode: str) -> dict[tuple[str, bool], str]:
    return faults.verdicts(mode)


@pytest.mark.parametrize("mode", build.MODES)
def test_every_fault_is_listed(mode):
    assert {name for name, _ in verdicts(mode)} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("mode", build.MODES)
def test_a_wrong_kernel_is_found_out(mode, name):
    said = EXPECTED[name]
    pattern = said if isinstance(said, str) else said[build.MODES.index(mode)]
    verdict = verdicts(mode)[name, True]
    assert re.search(pattern, verdict) if pattern else not verdict, verdict


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("mode", build.MODES)
def test_its_right_form_is_not(mode, name):
    assert verdicts(mode)[name, False] == ""
