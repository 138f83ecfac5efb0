"""Optional packages that a command needs."""

import importlib.util

from ssmvdm.errors import InputError


def need(**modules: tuple[str, ...]) -> None:
    """InputError with the remedy unless the modules of these extras are installed: need(video=("av", "PIL"))."""
    missing = {extra: [name for name in names if importlib.util.find_spec(name) is None]
               for extra, names in modules.items()}  # fmt: skip
    extras = [extra for extra, names in missing.items() if names]
    if extras:
        named = " and ".join(name for extra in extras for name in missing[extra])
        raise InputError(f"this command needs {named}: pip install 'ssmvdm-kernels[{','.join(extras)}]'")
