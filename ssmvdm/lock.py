"""One process at a time in a folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssmvdm.errors import InputError

WAIT_S = 10.0  # for loading processes of a run that was killed, which notice it after some seconds


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """The lock of a folder that exists, which the system takes back from a process that is killed; InputError if
    another one has it. Of the processes of one run the first has it. Windows has no such lock, nor have some network
    file systems."""
    if os.name == "nt" or os.environ.get("RANK", "0") != "0":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    import fcntl

    end = time.monotonic() + WAIT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise InputError(f"{folder}: another process is at work there") from None
        except OSError:
            return None
        time.sleep(0.2)
