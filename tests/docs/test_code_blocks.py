"""Every code block of the README and of docs/: Python runs, all else is checked as far as that is possible here."""

import re
import sys

import pytest
import torch

from tests.integration.models import diffusers, video_diffusion_pytorch

from .markdown import PAGES, ROOT, blocks, check_command, check_imports, commands

NEEDS = {"video_diffusion_pytorch": video_diffusion_pytorch, "diffusers": diffusers}
NEEDS["transformers"] = lambda: pytest.importorskip("transformers", reason="not installed: make test-integration")
# Pages whose blocks build whole networks of other packages.
LONG = {"from-mamba-ssm.md"}


def of_kind(*kinds):
    """Parameters: pages that have such blocks, with those blocks."""
    pages = [(page, [block for block in blocks(page) if block.kind in kinds]) for page in PAGES]
    return [
        pytest.param(found, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if page.name in LONG else [])
        for page, found in pages
        if found
    ]


@pytest.fixture
def _own_modules():
    """Names that a page put into sys.modules for others are gone afterwards."""
    before = set(sys.modules)
    torch.set_num_threads(1)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "mamba_ssm":
            del sys.modules[name]


@pytest.mark.usefixtures("_own_modules")
@pytest.mark.parametrize("page_blocks", of_kind("python"))
def test_python_blocks_run(page_blocks, monkeypatch, tmp_path):
    """In the order of the page, each where the ones before it left off."""
    monkeypatch.chdir(tmp_path)
    for package, require in NEEDS.items():
        if any(f"from {package}" in block.text for block in page_blocks):
            require()
    namespace = {"__name__": "__main__"}
    for block in page_blocks:
        exec(compile(block.text, block.place, "exec"), namespace)


@pytest.mark.parametrize("page_blocks", of_kind("python gpu"))
def test_blocks_for_a_gpu_compile_and_import(page_blocks):
    for block in page_blocks:
        check_imports(block)


@pytest.mark.parametrize("page_blocks", of_kind("bash", ""))
def test_shell_blocks_name_what_exists(page_blocks, capsys):
    for block in page_blocks:
        for words in commands(block):
            check_command(words)


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = {block.kind: block.place for page in PAGES for block in blocks(page)}
    assert set(kinds) == {"python", "python gpu", "bash", ""}, kinds


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ssmvdm" / "training_config.py"], ids=lambda page: page.name)
def test_no_flag_is_given_a_value(page):
    assert not re.findall(r"--[\w.-]+[ =](?:True|False)\b", page.read_text())


@pytest.mark.parametrize(
    "words", [["make", "nonsense"], ["pip", "install", ".[nonsense]"], ["pip", "install", "nonsense"], ["nonsense"]]
)
def test_the_check_of_commands_finds_mistakes(words):
    with pytest.raises(AssertionError):
        check_command(words)
