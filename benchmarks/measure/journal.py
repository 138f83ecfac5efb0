"""A run's diary: every answer on disk as soon as there is one, so that a run that was stopped goes on where it was."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from ssmvdm.data.export import replacing
from ssmvdm.errors import InputError, named_when_full


class Journal:
    """Answers to requests, one JSON line each, below a line with the stamp of the run.

    A request says everything that its answer depends on, the number of threads too; stamp says what else has to be
    equal for a recorded answer to count (`environment.stamp`). With `resume` the answers that are there already are
    taken, InputError if their stamp is another one; without, the file is begun anew. An answer with the status "error"
    is recorded but measured again. `spared_seconds` is how long the answers took that were taken from the file so far.
    """

    def __init__(self, path: Path, stamp: dict, resume: bool):
        self.path = path
        self.spared_seconds = 0.0
        self._answers: dict[str, dict] = {}
        self._spared: dict[str, float] = {}
        lines = _whole_lines(path) if resume else []
        if lines:
            self._take(lines, stamp)
        with replacing(path) as temporary:  # without the torn line, if there was one
            temporary.write_bytes(b"".join(lines or [_line({"stamp": stamp})]))

    def answer(self, request: dict, measure: Callable[[dict], dict]) -> dict:
        """The recorded answer to an equal request, else what measure(request) gives, recorded."""
        key = json.dumps(request, sort_keys=True)
        if key not in self._answers:
            start = time.monotonic()
            answer = measure(request)
            took = time.monotonic() - start
            with named_when_full(self.path), self.path.open("ab") as stream:
                stream.write(_line({"request": request, "seconds": took, "answer": answer}))
                stream.flush()
                os.fsync(stream.fileno())
            self._answers[key] = answer
        self.spared_seconds += self._spared.pop(key, 0.0)
        return self._answers[key]

    def discard(self) -> None:
        """Remove the file: the results are written."""
        self.path.unlink()

    def _take(self, lines: list[bytes], stamp: dict) -> None:
        try:
            head, *records = map(json.loads, lines)
            was = head["stamp"]
            for record in records:
                if record["answer"].get("status") != "error":
                    key = json.dumps(record["request"], sort_keys=True)
                    self._answers[key], self._spared[key] = record["answer"], float(record["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"--resume: {self.path} is not the journal of a run: {error!r}") from error
        differing = [name for name in {**was, **stamp} if was.get(name) != stamp.get(name)]
        if differing:
            told = ", ".join(f"{name} was {was.get(name)!r} and is {stamp.get(name)!r}" for name in differing)
            raise InputError(f"--resume: {self.path} belongs to another run: {told}")


def _line(record: dict) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _whole_lines(path: Path) -> list[bytes]:
    """Lines with their ends; a last one without is what a stopped write has left, and no line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"--resume: cannot read {path}: {error.strerror or error}") from error
    return [line for line in lines if line.endswith(b"\n")]
