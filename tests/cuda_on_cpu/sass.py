"""python -m tests.cuda_on_cpu.sass: what the scan's time loops cost on a multiprocessor, modelled from machine code.

Each kernel is disassembled. A time loop is a loop with exponentials of its own; its cost is that of the way through its
body that computes most of them: whole chunks, every option on. One exponential belongs to one state of one channel,
time step and direction, which says how many steps an iteration does. The model knows no latencies, no caches and
nothing outside the time loops (tiles of B and C, sums over blocks): it is a lower bound, and the report says so.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import build, device_code

REPORT = build.CSRC / "cuda" / "sass.md"
ARCHITECTURE = "sm_90"
STATES = 16
MULTIPROCESSORS, SCHEDULERS, CLOCK_GHZ = 132, 4, 1.755
# Threads of a pipe per cycle and multiprocessor; the first pattern that an instruction matches is its pipe.
PIPES = {
    "special": (r"MUFU", 16),
    "shuffle": (r"SHFL", 32),
    "memory": (r"LD|ST|ATOM|RED", 32),
    "multiply-add": (r"FFMA|FMUL|FADD|IMAD|HFMA2|HADD2|HMUL2", 128),
    "other": (r".", 64),
}
# How many times the 128 bytes that the memory pipe moves in a cycle a warp's access takes, by the bits of a thread. The
# tiles of B and C of a layout along channels are read by threads of which two and two want the same.
WAVEFRONTS = {"64": 2, "128": 4}
SHARED_WAVEFRONTS = 2
# Kernel -> how often a step goes through loops that only build states, and through those that do everything.
SCANS = {"scan_forward_kernel": (0, 1), "scan_backward_kernel": (1, 1)}
GOALS = {
    ("scan_forward_kernel", "ChannelThreads"): 300,
    ("scan_forward_kernel", "LaneThreads"): 330,
    ("scan_backward_kernel", "ChannelThreads"): 950,
    ("scan_backward_kernel", "LaneThreads"): 950,
}
FULL_SHAPE = (4096, 224, (16, 64, 256))  # sequences, channels, lengths that times are given for


@dataclass
class Block:
    """Instructions without a way in or out between them."""

    opcodes: list[str] = field(default_factory=list)
    next: set[int] = field(default_factory=set)

    @property
    def exponentials(self) -> int:
        return sum(opcode == "MUFU.EX2" for opcode in self.opcodes)


@dataclass(frozen=True)
class TimeLoop:
    """The most expensive way through a loop: its instructions, and the steps of one channel and direction it does."""

    opcodes: tuple[str, ...]
    shares_tiles: bool = False

    @property
    def steps(self) -> int:
        """A power of two, as loops are unrolled; a step has some exponentials more than those of its states."""
        return 1 << (self.opcodes.count("MUFU.EX2") // STATES).bit_length() - 1

    def per_step(self) -> Counter:
        """Instructions of each pipe, and "wavefronts" of memory, for one step of one channel and direction."""
        counts = Counter(pipe_of(opcode) for opcode in self.opcodes)
        accesses = [opcode for opcode in self.opcodes if pipe_of(opcode) == "memory"]
        if accesses:
            counts["wavefronts"] = sum(wavefronts_of(opcode, self.shares_tiles) for opcode in accesses)
        return Counter({pipe: count / self.steps for pipe, count in counts.items()})


def pipe_of(opcode: str) -> str:
    return next(pipe for pipe, (pattern, _) in PIPES.items() if re.match(pattern, opcode))


def wavefronts_of(opcode: str, shares_tiles: bool) -> int:
    width = next((bits for bits in opcode.split(".")[1:] if bits in WAVEFRONTS), "32")
    if shares_tiles and opcode.startswith("LDS") and width == "128":
        return SHARED_WAVEFRONTS
    return WAVEFRONTS.get(width, 1)


# -- machine code ------------------------------------------------------------------------------------------------------


@functools.cache
def find_nvdisasm() -> str | None:
    """Of the CUDA toolkit, or of NVIDIA's package on PyPI."""
    nvcc = build.find_nvcc()
    beside = shutil.which("nvdisasm", path=str(Path(nvcc).parent)) if nvcc else None
    packaged = [str(path) for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or beside or next(iter(packaged), None)


def disassembled(cubin: Path) -> dict[str, str]:
    """Mangled kernel name -> its text."""
    text = subprocess.run([find_nvdisasm(), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks_of(text: str) -> dict[int, Block]:
    """Basic blocks by the number of their first instruction, in the order of the text."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x?_?\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1].strip())

    def target(instruction: str) -> int | None:
        label = re.search(r"\bBRA\b.*?`\((\.L\w+)\)", instruction)
        return labels.get(label[1]) if label else None

    targets = [target(instruction) for instruction in instructions]
    starts = {0, *labels.values()} | {number + 1 for number, x in enumerate(instructions) if ends_block(x)}
    blocks: dict[int, Block] = {}
    for number, instruction in enumerate(instructions):
        if number in starts:
            blocks[number] = block = Block()
        block.opcodes.append(re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0])
        if targets[number] is not None:
            block.next.add(targets[number])
        if number + 1 in starts and not re.match(r"(BRA|EXIT|RET)\b(?!.*\bU?P\d, )", instruction):
            block.next.add(number + 1)
    for block in blocks.values():
        block.next &= blocks.keys()
    return blocks


def ends_block(instruction: str) -> bool:
    return re.search(r"\b(BRA|EXIT|RET)\b", instruction) is not None


def loops_of(blocks: dict[int, Block]) -> dict[int, set[int]]:
    """Header -> blocks of the loop: those that reach a jump back to it without passing it."""
    before: dict[int, set[int]] = {number: set() for number in blocks}
    for number, block in blocks.items():
        for other in block.next:
            before[other].add(number)
    loops: dict[int, set[int]] = {}
    for number, block in blocks.items():
        for header in block.next:
            if header > number:
                continue
            loop, waiting = loops.setdefault(header, {header}), [number]
            while waiting:
                member = waiting.pop()
                if member not in loop and member > header:
                    loop.add(member)
                    waiting += before[member]
    return loops


def time_loops(blocks: dict[int, Block], shares_tiles: bool = False) -> list[TimeLoop]:
    """Loops with exponentials that no inner loop has, the outermost of each nest, that do at least one whole step."""
    loops = loops_of(blocks)

    def own(header: int) -> int:
        inner = set().union(*(loop for other, loop in loops.items() if other != header and loop < loops[header]))
        return sum(blocks[number].exponentials for number in loops[header] - inner)

    found = [header for header in loops if own(header) >= STATES]
    outermost = [header for header in found if not any(loops[header] < loops[other] for other in found)]
    return [TimeLoop(tuple(longest_way(blocks, loops[header], header)), shares_tiles) for header in outermost]


def longest_way(blocks: dict[int, Block], loop: set[int], header: int) -> list[str]:
    """Instructions of the way from the header to a jump back that has most exponentials, then most instructions.

    Blocks come in the order of the text, so jumps back to them are those of loops; an inner loop is walked once.
    """
    best: dict[int, tuple[int, int]] = {header: (0, 0)}
    came_from: dict[int, int] = {}
    ends = []
    for number in sorted(loop):
        if number not in best:
            continue
        block = blocks[number]
        cost = (best[number][0] + block.exponentials, best[number][1] + len(block.opcodes))
        for other in block.next:
            if other == header:
                ends.append((cost, number))
            elif other in loop and other > number and cost > best.get(other, (-1, -1)):
                best[other], came_from[other] = cost, number
    number, way = max(ends)[1], []
    while True:
        way = blocks[number].opcodes + way
        if number == header:
            return way
        number = came_from[number]


# -- the model ---------------------------------------------------------------------------------------------------------


def per_element(kernel: str, loops: list[TimeLoop]) -> Counter:
    """Instructions by pipe for 32 elements: 32 channels or lanes, one time step, both directions.

    Loops come in variants, before and beyond the middle where the directions meet: half of the steps go through each.
    Those that do fewer steps at a time, where a sequence ends, are left out. The backward scan has cheaper loops that
    only build states, and every step goes through one of those before.
    """
    cheap, full = SCANS[kernel]
    least = min(sum(loop.per_step().values()) for loop in loops)
    building = [loop for loop in loops if cheap and sum(loop.per_step().values()) < 1.6 * least]
    doing = [loop for loop in loops if loop not in building]
    total: Counter = Counter()
    for role, times in ((building, cheap), (doing, full)):
        most = max((loop.steps for loop in role), default=0)
        costs = [loop.per_step() for loop in role if loop.steps == most]
        for cost in costs:
            for pipe, count in cost.items():
                total[pipe] += 2 * times * count / len(costs)
    return total


def cycles(cost: Counter) -> dict[str, float]:
    """Cycles of one scheduler for 32 elements, by what could bind: issue, or a pipe."""
    pipes = {pipe: cost[pipe] * 32 / (threads / SCHEDULERS) for pipe, (_, threads) in PIPES.items()}
    pipes["memory"] = float(cost["wavefronts"] * SCHEDULERS)
    return {"issue": sum(cost[pipe] for pipe in PIPES), **pipes}


def milliseconds(cost: Counter, length: int) -> float:
    sequences, channels, _ = FULL_SHAPE
    elements = sequences * channels * length
    return elements / 32 * max(cycles(cost).values()) / (MULTIPROCESSORS * SCHEDULERS * CLOCK_GHZ * 1e6)


def costs() -> dict[str, Counter]:
    """Kernel, as written -> its cost per 32 elements, for those that scan in bfloat16."""
    found = {}
    for part in device_code.all_compiled((ARCHITECTURE,), "scan"):
        texts = disassembled(part.cubin)
        for name, text in zip(device_code.readable(list(texts)), texts.values(), strict=True):
            kernel = name.partition("<")[0]
            if kernel in SCANS and "<bfloat16" in name:
                loops = time_loops(blocks_of(text), shares_tiles="ChannelThreads" in name)
                found[name] = per_element(kernel, loops)
    return dict(sorted(found.items(), reverse=True))


def goal_of(name: str) -> int | None:
    """Only kernels that take 16 states which change with time are measured by a goal."""
    found = [goal for (kernel, layout), goal in GOALS.items() if name.startswith(kernel) and layout in name]
    return found[0] if re.search(r", true, (true|false)>$", name) else None


HEAD = """# Cost of the scan's time loops, modelled

Counted in the machine code for {architecture} (nvcc {version}, sources {fingerprint}) by `make sass`; nothing here was
measured. Instructions of a warp for 32 elements; an element is one channel and time step of one sequence, in both
directions, with softplus, D and gate. Times are for {sequences} sequences of {channels} channels in bfloat16 on
{multiprocessors} multiprocessors at {clock} GHz, by whichever of issue and pipes takes longest; a wavefront is 128
bytes that the memory pipe moves in a cycle of the multiprocessor. The model knows no latencies, no bank conflicts and
nothing behind the first cache, and counts nothing outside the loops over time: real times are longer.

| kernel | issue slots | goal | {pipes} | wavefronts | binds | {times} |
|---|---|---|{columns}|
"""


def fingerprint() -> str:
    """Of the sources that the report is about."""
    return device_code.fingerprint(build.kernel_sources("scan"))


def report(found: dict[str, Counter]) -> str:
    sequences, channels, lengths = FULL_SHAPE
    text = HEAD.format(
        architecture=ARCHITECTURE, version=device_code.nvcc_version(), fingerprint=fingerprint(),
        sequences=sequences, channels=channels, multiprocessors=MULTIPROCESSORS, clock=CLOCK_GHZ,
        pipes=" | ".join(PIPES), times=" | ".join(f"ms at {length} steps" for length in lengths),
        columns="|".join("---" for _ in range(len(PIPES) + 2 + len(lengths))),
    )  # fmt: skip
    for name, cost in found.items():
        bound = cycles(cost)
        cells = [f"{bound['issue']:.0f}", str(goal_of(name) or "")]
        cells += [f"{cost[count]:.0f}" for count in (*PIPES, "wavefronts")]
        cells += [max(bound, key=lambda what: bound[what]), *(f"{milliseconds(cost, n):.3f}" for n in lengths)]
        text += f"| `{name}` | {' | '.join(cells)} |\n"
    return text


def main() -> None:
    if find_nvdisasm() is None:
        raise SystemExit("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    text = report(costs())
    REPORT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
