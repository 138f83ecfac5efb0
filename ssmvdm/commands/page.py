"""The page that a command leaves."""

import webbrowser
from pathlib import Path


def show(page: Path, in_browser: bool) -> None:
    """Say where it is, and open it if that was asked for."""
    print(page)
    if in_browser:
        webbrowser.open(page.resolve().as_uri())
