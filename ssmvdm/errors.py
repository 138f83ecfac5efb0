"""Errors of a user's input. The command line prints InputError as one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """An option, a file or a folder that cannot be used; the message is a full sentence for the user."""


@contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """A disk without space for what is written within: the error names the path, which that of a stream does not."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def sizes_from_outside() -> Iterator[None]:
    """Sizes within that torch can neither count nor allocate become ValueError: its own errors have no common type."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"sizes that torch cannot take: {str(error).splitlines()[0]}") from error
