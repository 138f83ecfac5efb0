"""The `ssmvdm` command. Bad input ends in one line on standard error and exit status 2, Ctrl-C in one line and 130."""

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.errors import InputError
from benchmarks.memory import MemoryOptions
from benchmarks.scan_options import ScanOptions

FAILED = 1
USAGE_ERROR = 2
WORKING_BYTES = 80  # per pixel, while clips are rendered and encoded
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class ReportOptions:
    """Draw the plot, the table and the HTML report again from a memory.json."""

    results: Annotated[Path, tyro.conf.Positional]
    """A memory.json that `ssmvdm bench memory` wrote."""

    out: Path | None = None
    """Folder for the files. Default: where the JSON lies."""

    open: bool = False
    """Show the report in the browser when done."""


@dataclass(frozen=True)
class DataOptions:
    """Write clips of a procedural data set as .gif (to look at) or .npy (to compute with)."""

    kind: Annotated[Literal["maze", "shapes"], tyro.conf.Positional]
    """maze: a first-person walk through a maze. shapes: discs and squares bouncing in a box."""

    out: Path = Path("clips.gif")
    """File to write; its ending says which format. .npy is (batch, 3, frames, size, size) float32 in [0, 1]."""

    frames: int = 64
    """Frames per clip."""

    size: int = 64
    """Height and width in pixels."""

    batch: int = 1
    """Number of clips; a GIF shows them side by side."""

    seed: int = 0
    """Which clips: the same seed gives the same clips."""

    fps: float = 12.0
    """Frames per second of the GIF."""

    scale: int = 1
    """Enlarge the GIF's pixels this many times."""


@dataclass(frozen=True)
class InfoOptions:
    """Versions, builds and backends of this installation, and why a backend is missing."""

    json: bool = False
    """As one JSON object instead of text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        COMMANDS[type(options)](options)
    except InputError as error:
        print(f"ssmvdm: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("ssmvdm: interrupted, nothing written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: `ssmvdm info | head -1`
        sys.stdout = None
        return 0
    except OSError as error:  # a full disk, say
        print(f"ssmvdm: error: {error}", file=sys.stderr)
        return FAILED
    return 0


def parse(argv: Sequence[str]):
    """The chosen command's options. InputError for what cannot be understood, SystemExit after --help."""
    app, bench = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    bench.command(MemoryOptions, name="memory")
    bench.command(ScanOptions, name="scan")
    bench.command(ReportOptions, name="report")
    app.command(bench, name="bench", help="Measure memory and time, every number behind a correctness gate.")
    app.command(DataOptions, name="data")
    app.command(InfoOptions, name="info")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags = (tyro.conf.FlagCreatePairsOff,)
            return app.cli(prog="ssmvdm", description=DESCRIPTION, args=list(argv), config=flags)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(in_one_line(complaint.getvalue())) from None


def in_one_line(complaint: str) -> str:
    """tyro's framed, coloured complaint as one sentence, without the options' help that it appends."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [line.strip("\u2502| ").strip() for line in plain.splitlines()]
    lines = [line for line in lines if line and not set(line[:2]) & set("\u256d\u2570\u2500+")]
    told = []
    for line in lines:
        if line.startswith(("Argument helptext", "For full helptext", "Arguments similar to")):
            break
        told.append(line)
    return " ".join(told or lines).removeprefix("Error parsing ").rstrip(".") + "; see --help"


def run_memory(options: MemoryOptions) -> None:
    need("bench", "matplotlib", "rich")
    from benchmarks import memory

    memory.run(options)


def run_scan(options: ScanOptions) -> None:
    options.check()
    need("bench", "rich")
    from benchmarks import scan

    scan.run(options)


def run_report(options: ReportOptions) -> None:
    import webbrowser

    need("bench", "matplotlib")
    from benchmarks import report

    result = report.load(options.results)
    html = report.write_all(result, report.prepare_folder(options.out or options.results.parent))
    print(html)
    if options.open:
        webbrowser.open(html.resolve().as_uri())


def run_data(options: DataOptions) -> None:
    from benchmarks.process_memory import available_bytes
    from ssmvdm.data import export, maze, moving_shapes
    from ssmvdm.data.checks import check_clip_arguments

    kind, path = options.out.suffix.lower(), options.out
    if kind not in (".gif", ".npy"):
        raise InputError(f"--out: expected a file name ending in .gif or .npy, got {str(path)!r}")
    if not 0.0 < options.fps <= 100.0:
        raise InputError(f"--fps: expected a number above 0 and at most 100, got {options.fps}")
    if options.scale < 1:
        raise InputError(f"--scale: expected a whole number of at least 1, got {options.scale}")
    if kind == ".gif":
        need("bench", "PIL")
    source = {"maze": maze, "shapes": moving_shapes}[options.kind]
    try:
        check_clip_arguments(options.seed, options.frames, options.size, options.batch)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    needed = WORKING_BYTES * options.batch * options.frames * options.size**2
    if needed > (available_bytes() or needed):
        raise InputError(f"clips of this size need {needed / 2**30:.1f} GiB of memory, which is more than is free")
    clips = source.clips(options.seed, options.batch, options.frames, options.size)
    try:
        if kind == ".gif":
            export.write_gif(path, clips, options.fps, options.scale)
        else:
            export.write_npy(path, clips)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    print(path)


def run_info(options: InfoOptions) -> None:
    from ssmvdm_kernels import info

    info.main(["--json"] if options.json else [])


def need(extra: str, *modules: str) -> None:
    """InputError with the remedy unless these optional modules are installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"this command needs {module}: pip install 'ssmvdm-kernels[{extra}]'")


DESCRIPTION = """Video diffusion with bidirectional selective scans instead of temporal attention."""
COMMANDS = {
    MemoryOptions: run_memory,
    ScanOptions: run_scan,
    ReportOptions: run_report,
    DataOptions: run_data,
    InfoOptions: run_info,
}


if __name__ == "__main__":
    sys.exit(main())
