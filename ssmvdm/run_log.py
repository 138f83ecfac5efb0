"""What a run leaves behind while it goes: log.jsonl always, TensorBoard's files where it is installed."""

import importlib.util
import json
import os
from pathlib import Path

from ssmvdm.data.export import replacing
from ssmvdm.errors import named_when_full

PLOTTED = ("loss", "gradient_norm", "seconds", "memory_bytes")


class RunLog:
    """folder/log.jsonl, one JSON object per line and step, and folder/tensorboard.

    step: the one that the run goes on from. Lines of later steps, which a killed run may have left, are dropped, and a
    last line that was cut short with them.
    """

    def __init__(self, folder: Path, step: int):
        self.path = folder / "log.jsonl"
        kept = [json.dumps(record) + "\n" for record in read_log(self.path) if record["step"] <= step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")
        self._writer = _tensorboard(folder / "tensorboard", step)

    def write(self, record: dict) -> None:
        with named_when_full(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name in PLOTTED:
                self._writer.add_scalar(name, record[name], record["step"])

    def sync(self) -> None:
        """What was written is on the disk."""
        with named_when_full(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict]:
    """The records of a log.jsonl, but for lines that were damaged or cut short, which a loss of power may leave; none
    if there is no file."""
    if not path.exists():
        return []
    found = (_record(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    return [record for record in found if record is not None]


def _record(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:  # no JSON, or no text
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _tensorboard(folder: Path, step: int):
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
