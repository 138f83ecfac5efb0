"""The model of the scan's cost: how it reads machine code, and that the committed report is of these sources."""

from __future__ import annotations

import pytest

from . import sass

# A loop of 2 steps whose second half is passed by where a predicate says so, with one step more in an inner loop.
EXPONENTIALS = "\n".join(["        /*0000*/                   MUFU.EX2 R1, R1 ;"] * 17)
TEXT = f"""
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
.L_x_1:
{EXPONENTIALS}
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_3) ;
.L_x_2:
{EXPONENTIALS}
{EXPONENTIALS}
        /*0060*/                   FFMA R1, R2, R3, R4 ;
        /*0070*/                   SHFL.BFLY PT, R3, R1, 0x1, 0x1f ;
.L_x_3:
        /*0080*/                   STS [R5], R1 ;
        /*0090*/               @P2 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
"""


def test_the_way_with_most_exponentials_is_taken():
    (loop,) = sass.time_loops(sass.blocks_of(TEXT))
    assert loop.steps == 2
    assert loop.opcodes == ("LDG.E", "BRA", *["MUFU.EX2"] * 34, "FFMA", "SHFL.BFLY", "STS", "BRA")
    wanted = {"special": 17, "memory": 1, "multiply-add": 0.5, "shuffle": 0.5, "other": 1, "wavefronts": 1}
    assert loop.per_step() == wanted


def test_costs_of_passes_add_up_and_variants_share_the_steps():
    def loop(extra: int, steps: int = 4) -> sass.TimeLoop:
        return sass.TimeLoop((*["MUFU.EX2"] * (17 * steps), *["FFMA"] * extra))

    states, before, beyond = loop(12), loop(132), loop(172)
    forward = sass.per_element("scan_forward_kernel", [before, beyond])
    assert forward == {"special": 2 * 17, "multiply-add": 33 + 43}
    backward = sass.per_element("scan_backward_kernel", [states, before, beyond])
    assert backward == {"special": 4 * 17, "multiply-add": 33 + 43 + 2 * 3}
    two_at_a_time = sass.per_element("scan_backward_kernel", [states, loop(66, steps=2), loop(43, steps=1)])
    assert two_at_a_time == {"special": 4 * 17, "multiply-add": 2 * 33 + 2 * 3}


def test_wide_accesses_take_as_many_cycles_as_they_have_wavefronts():
    """Those of a warp that has 512 bytes to itself four; where threads share them fewer."""
    opcodes = (*["MUFU.EX2"] * 17, "LDS.128", "LDG.E.128.CONSTANT", "STS.64", "LDG.E.U16", "STS")
    own, shared = sass.TimeLoop(opcodes), sass.TimeLoop(opcodes, shares_tiles=True)
    assert (own.per_step()["wavefronts"], shared.per_step()["wavefronts"]) == (12, 10)
    assert sass.cycles(own.per_step())["memory"] == 48
    assert sass.cycles(own.per_step())["issue"] == 22


def test_the_pipe_that_takes_longest_binds():
    """38 special functions and 256 instructions of an element are what the floor of the forward scan is made of."""
    cost = sass.Counter({"special": 38, "multiply-add": 144, "other": 74})
    cycles = sass.cycles(cost)
    assert (cycles["special"], cycles["issue"], cycles["multiply-add"]) == (304, 256, 144)
    elements = 4096 * 224 * 64
    assert sass.milliseconds(cost, 64) == pytest.approx(elements / 32 * 304 / (132 * 4 * 1.755e6), rel=1e-12)


def test_the_report_is_of_these_sources():
    assert f"sources {sass.fingerprint()})" in sass.REPORT.read_text(), "stale: make sass"


@pytest.mark.slow
@pytest.mark.skipif(sass.find_nvdisasm() is None, reason="nvdisasm was not found")
def test_counted_again_it_is_the_same():
    assert sass.report(sass.costs()) == sass.REPORT.read_text()
