"""The `ssmvdm` command. Bad input ends in one line on standard error and exit status 2, Ctrl-C in one line and 130."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence

import tyro

from ssmvdm.commands import bench, convert, data, demo, evaluate, info, reproduce, sample, train
from ssmvdm.errors import InputError

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        COMMANDS[type(options)](options)
    except InputError as error:
        print(f"ssmvdm: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"ssmvdm: {str(interrupt) or 'interrupted, nothing written'}", file=sys.stderr)
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
    app, benches, conversions = (tyro.extras.SubcommandApp() for _ in range(3))
    benches.command(bench.AllOptions, name="all")
    benches.command(bench.ScanOptions, name="scan")
    benches.command(bench.LayerOptions, name="layers")
    benches.command(bench.MemoryOptions, name="memory")
    benches.command(bench.ReportOptions, name="report")
    app.command(train.command(argv), name="train")
    app.command(sample.SampleOptions, name="sample")
    app.command(evaluate.EvaluateOptions, name="evaluate")
    app.command(reproduce.ReproduceOptions, name="reproduce")
    app.command(demo.DemoOptions, name="demo")
    app.command(benches, name="bench", help="Measure memory and time, every number behind a correctness gate.")
    conversions.command(convert.ConvertDataOptions, name="data")
    conversions.command(convert.ConvertCheckpointOptions, name="checkpoint")
    app.command(conversions, name="convert", help="Foreign data sets and checkpoints into the forms used here.")
    app.command(data.DataOptions, name="data")
    app.command(info.InfoOptions, name="info")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags = (tyro.conf.FlagCreatePairsOff,)
            return app.cli(prog="ssmvdm", description=DESCRIPTION, args=list(argv), config=flags)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(in_one_line(complaint.getvalue())) from None
    except ValueError as error:  # of a configuration's check of its own fields
        raise InputError(str(error)) from error


def in_one_line(complaint: str) -> str:
    """tyro's framed, coloured complaint as one sentence, without the help of options that it appends.

    Where the output takes ASCII alone there is no frame, but a title and rules of hyphens.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [line.strip("\u2502| ").strip() for line in plain.splitlines()]
    lines = [line for line in lines if line and not set(line[:2]) & set("\u256d\u2570\u2500+")]
    rules = [number for number, line in enumerate(lines) if set(line) == {"-"}]
    if rules:
        lines = [line for line in lines[rules[0] :] if set(line) != {"-"}]
    told = []
    for line in lines:
        if line.startswith(HELP_OF_OPTIONS):
            break
        told.append(line)
    sentence = " ".join(told or lines).removeprefix("Error parsing ")
    return re.sub(r"^__tyro-dummy-inner__\.(training\.)?", "", sentence).rstrip(".") + "; see --help"


HELP_OF_OPTIONS = ("Argument helptext", "For full helptext", "Arguments similar to", "Perhaps you meant")
DESCRIPTION = """Video diffusion with bidirectional selective scans instead of temporal attention."""
COMMANDS = {
    train.TrainOptions: train.run,
    sample.SampleOptions: sample.run,
    evaluate.EvaluateOptions: evaluate.run,
    reproduce.ReproduceOptions: reproduce.run,
    demo.DemoOptions: demo.run,
    bench.AllOptions: bench.run_all,
    bench.ScanOptions: bench.run_scan,
    bench.LayerOptions: bench.run_layers,
    bench.MemoryOptions: bench.run_memory,
    bench.ReportOptions: bench.run_report,
    convert.ConvertDataOptions: convert.run_data,
    convert.ConvertCheckpointOptions: convert.run_checkpoint,
    data.DataOptions: data.run,
    info.InfoOptions: info.run,
}


if __name__ == "__main__":
    sys.exit(main())
