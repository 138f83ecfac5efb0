"""python -m tests.cuda_on_cpu.resources: registers, spills and static shared memory of every kernel, as a table.

The table is csrc/cuda/resources.md. It begins with a fingerprint of the sources, so that a test can tell in no time
whether it is of these sources, and the same table can be made again where nvcc is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import build, device_code

TABLE = build.CSRC / "cuda" / "resources.md"
MOST_SPILLED = 64  # bytes of a thread
HEAD = """# Resources of the CUDA kernels

Registers of a thread, bytes that it spills, bytes of static shared memory of a block, as ptxas reports them.
Made by `make cuda-resources`; the tests fail where this table is of other sources, or where a kernel spills more than
{most} bytes.

sources {fingerprint}, nvcc {version}

| kernel | {architectures} |
|---|{columns}|
"""


@dataclass(frozen=True)
class Resources:
    """spilled: the larger of bytes stored and bytes loaded."""

    registers: int
    spilled: int
    shared: int

    def __str__(self) -> str:
        return f"{self.registers} / {self.spilled} / {self.shared}"


def parsed(log: str) -> dict[str, Resources]:
    """Mangled name -> what ptxas says, from its own words."""
    found = {}
    for entry in re.split(r"Compiling entry function '", log)[1:]:
        def number(pattern: str, text: str = entry) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        spilled = max(number(r"(\d+) bytes spill stores"), number(r"(\d+) bytes spill loads"))
        found[entry.split("'")[0]] = Resources(number(r"Used (\d+) registers"), spilled, number(r"(\d+) bytes smem"))
    return found


def measured(architectures: tuple[str, ...] = device_code.ARCHITECTURES) -> dict[str, dict[str, Resources]]:
    """Kernel -> architecture -> resources."""
    table: dict[str, dict[str, Resources]] = {}
    for part in device_code.all_compiled(architectures):
        kernels = parsed(part.log)
        for name, resources in zip(device_code.readable(list(kernels)), kernels.values(), strict=True):
            table.setdefault(name, {})[part.architecture] = resources
    return dict(sorted(table.items()))


def rows(table: dict[str, dict[str, Resources]]) -> list[str]:
    return [f"| `{name}` | {' | '.join(str(x) for x in entry.values())} |" for name, entry in table.items()]


def fingerprint() -> str:
    """Of the sources that the table is about."""
    return device_code.fingerprint(build.kernel_sources())


def head() -> str:
    names = device_code.ARCHITECTURES
    return HEAD.format(
        most=MOST_SPILLED, fingerprint=fingerprint(), version=device_code.nvcc_version(),
        architectures=" | ".join(names), columns="|".join("---" for _ in names),
    )  # fmt: skip


def committed() -> tuple[str, dict[str, dict[str, Resources]]]:
    """The fingerprint in the table, and the table."""
    text = TABLE.read_text()
    table = {}
    for name, *entries in re.findall(r"^\| `(.*)` \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE):
        values = [Resources(*(int(x) for x in entry.split(" / "))) for entry in entries]
        table[name] = dict(zip(device_code.ARCHITECTURES, values, strict=True))
    return re.search(r"^sources (\w+),", text, re.MULTILINE)[1], table


def too_much(table: dict[str, dict[str, Resources]]) -> list[str]:
    """Kernels that spill more than they may, in words."""
    return [
        f"{name} spills {resources.spilled} bytes on {architecture}, more than {MOST_SPILLED}"
        for name, entry in table.items()
        for architecture, resources in entry.items()
        if resources.spilled > MOST_SPILLED
    ]


def main() -> None:
    table = measured()
    TABLE.write_text(head() + "\n".join(rows(table)) + "\n")
    print(f"{TABLE.relative_to(build.ROOT)}: {len(table)} kernels")
    for line in too_much(table):
        print(line)


if __name__ == "__main__":
    main()
