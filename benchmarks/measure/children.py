"""Measurements in processes of their own: nothing measured before can have left its memory or its caches behind.

Every process is forked from a server that has imported torch and computed nothing, so that a measurement does not wait
for imports. Where the system has no such servers, processes start from nothing.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from benchmarks.measure.journal import Journal
from ssmvdm.errors import InputError

TIMEOUT_SECONDS = 300.0
EXIT_SECONDS = 10.0


def call_child(request: dict, timeout: float = TIMEOUT_SECONDS) -> dict:
    """The answer of `benchmarks.child` to a request, or {"status", "detail"} saying in words why there is none; with
    them comes what it had so far, if it told, "unfinished" being the part that it ended in."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_answer, args=(request, sender), daemon=True)
    process.start()
    sender.close()
    so_far: dict = {}
    until = time.monotonic() + timeout
    try:
        while receiver.poll(max(0.0, until - time.monotonic())):
            answer = receiver.recv()
            if "unfinished" not in answer:
                process.join(EXIT_SECONDS)  # one that is killed leaves behind what libraries remove at its end
                return so_far | answer if "status" in answer else answer
            so_far = answer
        return so_far | {"status": "timeout", "detail": f"not done after {timeout:.0f} s"}
    except EOFError:  # it died before it could answer
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return so_far | {"status": "out of memory", "detail": "killed by the system (signal 9)"}
        return so_far | {"status": "error", "detail": f"ended without an answer, exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        receiver.close()


def environment_of(threads: int, journal: Journal, device: str = "cpu") -> dict:
    """`environment.describe` as a process with so many threads sees it, when the run began, with what there is to say
    of the GPU for "cuda"; InputError if torch or the package cannot be imported, or there is no such device."""
    found = journal.answer({"task": "environment" if device == "cpu" else "gpu", "threads": threads}, call_child)
    if not found.get("status"):
        return found
    if device != "cpu":
        raise InputError(f"--device {device}: no such device can be used: {found['detail']}")
    raise InputError(f"torch or the package cannot be imported: {found['detail']}")


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.child"])
    return context


def _answer(request: dict, sender: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it without a word; the parent says them
    os.dup2(2, 1)  # whatever a library prints must not mix with the parent's output
    os.environ["SSMVDM_STRICT"] = "1"  # a measurement of the slow reference would be a lie
    from benchmarks import child

    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        for answer in child.answers(request):
            sender.send(answer)


def _end_with_parent() -> None:
    """One that is killed cannot end its processes, and a run that goes on would be measured beside them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
