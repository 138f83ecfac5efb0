"""The device that a command computes on."""

from typing import TYPE_CHECKING

from ssmvdm.errors import InputError

if TYPE_CHECKING:
    import torch


def device_named(name: str) -> "torch.device":
    """auto: a GPU where there is one. InputError for a device that this torch cannot use."""
    import torch

    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without that device
        raise InputError(f"--device: cannot use {name!r}: {str(error).splitlines()[0]}") from error
    return device
