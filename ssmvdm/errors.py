"""Errors of a user's input. The command line prints InputError as one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """An option, a file or a folder that cannot be used; the message is a full sentence for the user."""


@contextmanager
def sizes_from_outside() -> Iterator[None]:
    """Sizes within that torch can neither count nor allocate become ValueError: its own errors have no common type."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"sizes that torch cannot take: {str(error).splitlines()[0]}") from error
