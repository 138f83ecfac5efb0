"""Every mutant can still be planted, and the table has none that lives."""

from __future__ import annotations

import shutil

import pytest

from tests.cuda_on_cpu.build import ROOT

from . import table
from .planted import MUTANTS, TARGETS, Mutant
from .workshop import FOLDER


def by_name(mutant: Mutant) -> str:
    return mutant.name


@pytest.mark.parametrize("mutant", MUTANTS, ids=by_name)
def test_it_changes_one_place(mutant, tmp_path):
    """A line that was moved or rewritten takes its mutant along."""
    assert mutant.problem() is None
    path = tmp_path / mutant.path
    path.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.path, path)
    mutant.plant(tmp_path)
    assert path.read_bytes() != (ROOT / mutant.path).read_bytes()
    assert mutant.problem(tmp_path) is not None or mutant.before in mutant.after


@pytest.mark.parametrize("mutant", MUTANTS, ids=by_name)
def test_its_tests_exist(mutant):
    assert (ROOT / mutant.tests[0].partition("::")[0]).is_file()


def test_there_are_a_dozen_bugs_in_all_kernels():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 24
    assert len({mutant.bug for mutant in MUTANTS}) >= 12
    assert {mutant.target for mutant in MUTANTS} == set(TARGETS)


def test_no_mutant_is_known_to_live():
    """Results are of what is planted now; a mutant that has changed since has none until `make mutants`."""
    results = table.load()
    current = [m for m in MUTANTS if results.get(m.name, {}).get("digest") == table.digest(m)]
    assert [m.name for m in current if results[m.name]["outcome"] != "killed"] == []
    assert len(current) >= 24 and len({m.bug for m in current}) >= 12


def test_the_table_shows_the_results():
    assert table.TABLE.read_text(encoding="utf-8") == table.page(table.load())


def test_the_copy_is_never_committed():
    assert FOLDER.is_relative_to(ROOT / "build")
