"""The fenced code blocks of the documentation, and what may be asked of one that is not run."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block: what stands after its fence, "python", "python gpu", "bash" or nothing (a shell too), and where."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1].strip(), match[2])
        for match in FENCE.finditer(text)
    ]


def check_imports(block: Block) -> None:
    """Compile a block and carry out its imports, and nothing else of it."""
    tree = ast.parse(block.text, block.place)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports, f"{block.place}: nothing to check"
    exec(compile(ast.Module(imports, []), block.place, "exec"), {})


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, in words, without comments and without variables set before them."""
    found = []
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def check_command(words: list[str]) -> None:
    """Fail unless the command's program, and what it is asked for, exist here."""
    program, *arguments = words
    named = [argument for argument in arguments if not argument.startswith("-") and "=" not in argument]
    if program == "pip":
        assert named[0] == "install" and len(named) > 1, words
        for requirement in named[1:]:
            check_requirement(requirement)
    elif program == "make":
        rules = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        targets = {target for names in rules for target in names.split()}
        assert named and set(named) <= targets, f"{words}: no such target"
    elif program == "python":
        assert arguments[0] == "-m" and importlib.util.find_spec(arguments[1]), words
    elif program == "ssmvdm":
        check_own_command(arguments)
    else:
        assert (ROOT / program).is_file(), f"{words}: a command that this test does not know"


def check_requirement(requirement: str) -> None:
    """Ours, with extras that exist, or a package that the project's own files name."""
    name, _, extras = requirement.rstrip("]").partition("[")
    project = (ROOT / "pyproject.toml").read_text()
    for extra in filter(None, extras.split(",")):
        assert re.search(rf"^{re.escape(extra)} = \[", project, re.MULTILINE), f"{requirement}: no extra {extra!r}"
    if name not in (".", "ssmvdm-kernels"):
        assert re.search(rf"[\"\s]{re.escape(name)}[\"\s]", project + (ROOT / "Makefile").read_text()), requirement


def check_own_command(arguments: list[str]) -> None:
    """Ask the command for its help, which ends well only where the command exists."""
    from ssmvdm import cli

    until_options = [argument for argument in arguments if not argument.startswith("-")]
    try:
        cli.main([*until_options, "--help"])
    except SystemExit as end:
        assert not end.code, arguments
