"""A copy of the tree in which mutants are planted, built and tested. Objects of one build serve the next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_on_cpu.build import ROOT

from .planted import Mutant

FOLDER = ROOT / "build" / "mutants"
COPIED = ("csrc", "ssmvdm_kernels", "ssmvdm", "benchmarks", "tests", "setup.py", "pyproject.toml", "README.md")
SUFFIXES = (".pyc", ".so", ".png", ".svg", ".html")  # not copied
LONGEST = 900  # seconds that the tests of one mutant may take: a kernel that never ends is seen, too


@dataclass(frozen=True)
class Verdict:
    """outcome: killed | survived | does not apply | does not build | fails without. by: the test that saw it."""

    outcome: str
    by: str
    seconds: float


class Workshop:
    def __init__(self, folder: Path = FOLDER):
        self.folder = folder
        self._passing: dict[tuple[str, ...], str | None] = {}  # tests -> what fails without a mutant
        folder.mkdir(parents=True, exist_ok=True)
        self._copy_tree()
        self._build()

    def judge(self, mutant: Mutant) -> Verdict:
        """Plant it, build what it needs, run the tests that are to see it, and put the source back."""
        start = time.monotonic()

        def verdict(outcome: str, by: str = "") -> Verdict:
            return Verdict(outcome, by, round(time.monotonic() - start, 1))

        problem = mutant.problem(self.folder)
        if problem:
            return verdict("does not apply", problem)
        if mutant.tests not in self._passing:
            self._build()  # the mutant before this one is out of the source, not out of the extension
            self._passing[mutant.tests] = self._first_failure(mutant.tests)
        if self._passing[mutant.tests] is not None:
            return verdict("fails without", str(self._passing[mutant.tests]))
        start = time.monotonic()
        source = self.folder / mutant.path
        original = source.read_bytes()
        try:
            mutant.plant(self.folder)
            try:
                if mutant.target == "cpu":
                    self._build()
            except subprocess.CalledProcessError as error:
                return verdict("does not build", error.stderr[-500:])
            failed = self._first_failure(mutant.tests)
        finally:
            source.write_bytes(original)
        return verdict("survived") if failed is None else verdict("killed", failed)

    def _copy_tree(self) -> None:
        wanted = {path.relative_to(ROOT) for name in COPIED for path in _files(ROOT / name)}
        for name in COPIED:
            for path in _files(self.folder / name):
                if path.relative_to(self.folder) not in wanted:
                    path.unlink()
        for name in wanted:
            content, target = (ROOT / name).read_bytes(), self.folder / name
            if not target.exists() or target.read_bytes() != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    def _build(self) -> None:
        """The CPU extension; tests build the emulated kernels themselves."""
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=self.folder, env=_environment(), capture_output=True, text=True, check=True)
        if not list((self.folder / "ssmvdm_kernels").glob("_C*")):
            raise subprocess.CalledProcessError(1, command, stderr="the extension was not built")

    def _first_failure(self, tests: tuple[str, ...]) -> str | None:
        """The first test that fails, or how the process ended; None if all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rf", "-o", "addopts=--strict-markers"]
        marked = () if "-m" in tests else ("-m", "not slow")
        environment = _environment() | {"TRITON_INTERPRET": str(int(any("interpreted" in test for test in tests)))}
        try:
            found = subprocess.run(
                [*command, "-p", "no:cacheprovider", *marked, *tests], cwd=self.folder, env=environment,
                capture_output=True, text=True, timeout=LONGEST, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no end after {LONGEST} s"
        if found.returncode == 0:
            return None
        if found.returncode < 0:
            return f"{' '.join(tests)}: ended by signal {-found.returncode}"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", found.stdout, re.MULTILINE)
        if found.returncode != 1 or failed is None:
            raise RuntimeError(f"pytest ended with {found.returncode}\n{found.stdout[-3000:]}{found.stderr[-2000:]}")
        return failed[1]


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return [p for p in found if p.suffix not in SUFFIXES and "__pycache__" not in p.parts]


def _environment() -> dict[str, str]:
    """No bytecode: of two sources that change within a second Python would take the first one's."""
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "SSMVDM_SKIP_CUDA_BUILD": "1"}
