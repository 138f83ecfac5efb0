"""The documentation as a site: complete, and built without a warning."""

import re
import subprocess
import sys

import pytest

import ssmvdm
import ssmvdm_kernels

from .markdown import ROOT


@pytest.mark.parametrize("package", [ssmvdm, ssmvdm_kernels], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(rf"^::: {package.__name__}\.(\w+)$", text, re.MULTILINE))
    assert set(package.__all__) - {"__version__"} <= documented
    assert all(getattr(package, name).__doc__ for name in package.__all__ if name != "__version__")


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocs is not installed: make test-integration")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    reference = (tmp_path / "api" / "kernels" / "index.html").read_text()
    assert "independently for every batch element, channel and lane" in reference  # from a docstring
