"""`ssmvdm info`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InfoOptions:
    """Versions, builds and backends of this installation, and why a backend is missing."""

    json: bool = False
    """As one JSON object instead of text."""


def run(options: InfoOptions) -> None:
    from ssmvdm_kernels import info

    info.main(["--json"] if options.json else [])
