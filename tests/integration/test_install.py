"""`compat.mamba.install()`: what others find under the name mamba_ssm. Each test has a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_only_install_puts_anything_under_that_name():
    run("""
import importlib.util, sys
import ssmvdm_kernels.compat.vim, ssmvdm_kernels.compat.vmamba
from ssmvdm_kernels.compat import mamba
assert not any(name.partition(".")[0] == "mamba_ssm" for name in sys.modules)
mamba.install()
import mamba_ssm
from mamba_ssm import Mamba
from mamba_ssm.modules.mamba_simple import Mamba as SameMamba
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from mamba_ssm.ops.selective_scan_interface import mamba_inner_ref, selective_scan_ref
from mamba_ssm.ops.selective_scan_interface import bimamba_inner_fn, mamba_inner_fn_no_out_proj
import mamba_ssm.ops.selective_scan_interface as interface
assert selective_scan_fn is mamba.selective_scan_fn and mamba_inner_fn is mamba.mamba_inner_fn
assert interface.selective_scan_fn is mamba_ssm.selective_scan_fn
assert Mamba is SameMamba is ssmvdm_kernels.compat.vim.Mamba
assert importlib.util.find_spec("mamba_ssm").name == "mamba_ssm"
assert mamba_ssm.__version__.startswith("1.")
try:
    from mamba_ssm import Mamba2
except ImportError:
    pass
else:
    raise AssertionError("there is no Mamba-2 here")
mamba.install()
assert sys.modules["mamba_ssm"] is mamba_ssm
""")


def test_another_mamba_ssm_is_not_replaced():
    run("""
import sys, types
other = sys.modules["mamba_ssm"] = types.ModuleType("mamba_ssm")
other.__file__ = "/somewhere/mamba_ssm/__init__.py"
from ssmvdm_kernels.compat import mamba
try:
    mamba.install()
except RuntimeError as error:
    assert "imported already, from /somewhere/mamba_ssm" in str(error), error
else:
    raise AssertionError("no error")
assert sys.modules["mamba_ssm"] is other and "mamba_ssm.ops" not in sys.modules
""")


LENGTH = 11
TRANSFORMERS = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from ssmvdm_kernels.compat import mamba
{install}
from transformers import MambaConfig, MambaModel
from transformers.models.mamba import modeling_mamba

class Scans(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.seen += "scan_forward" in str(function)
        return function(*arguments, **(options or {{}}))

torch.manual_seed(0)
config = MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2)
model, tokens = MambaModel(config), torch.arange(2 * {length}).reshape(2, {length})
results = []
for is_training in (False, True):
    with Scans() as scans:
        y = model.train(is_training)(tokens, use_cache=False).last_hidden_state
    assert scans.seen == {scans}, scans.seen
    model.zero_grad()
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    results += [y.detach(), *(p.grad.clone() for p in model.parameters())]
prefilled = model.eval()(tokens, use_cache=True)
results.append(prefilled.last_hidden_state.detach())
torch.save(results, "{path}")
"""


@pytest.mark.slow
def test_transformers_mamba_runs_on_our_scan(tmp_path):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: make test-integration")
    import torch

    found = []
    for name, install, scans in (("theirs", "", 0), ("ours", "mamba.install()", 2)):
        path = tmp_path / name
        run(TRANSFORMERS.format(install=install, scans=scans, path=path, length=LENGTH))
        found.append(torch.load(path, weights_only=True))
    one_rounding_per_step = LENGTH * torch.finfo(torch.float32).eps
    for theirs, ours in zip(*found, strict=True):
        assert (theirs - ours).norm() <= one_rounding_per_step * theirs.norm()
