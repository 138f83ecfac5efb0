"""Optional packages that a command needs."""

import importlib.util

from ssmvdm.errors import InputError


def need(extra: str, *modules: str) -> None:
    """InputError with the remedy unless these optional modules are installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"this command needs {module}: pip install 'ssmvdm-kernels[{extra}]'")
