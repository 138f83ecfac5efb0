"""What all benchmarks' options have in common: the folder of the results, devices, checks without the command line."""

import pytest
import torch

from benchmarks.kernels.scan_options import ScanOptions
from benchmarks.layers.options import LayerOptions
from benchmarks.models.options import MemoryOptions
from benchmarks.options import RESULTS
from ssmvdm.compared import Network
from ssmvdm.errors import InputError
from ssmvdm.report.environment import device_name, device_slug


def test_results_of_a_gpu_are_named_by_the_gpu_and_without_one_a_line_says_so(tmp_path, monkeypatch):
    options = MemoryOptions(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for one in (options, LayerOptions(device="cuda"), ScanOptions(device="cuda")):
        with pytest.raises(InputError, match="--device cuda: no such device can be used: PyTorch finds no CUDA device"):
            one.check()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X1 80GB")
    assert options.folder() == LayerOptions(device="cuda").folder() == RESULTS / "nvidia-x1-80gb"
    assert ScanOptions(device="cuda").folder() == options.folder()
    assert MemoryOptions().folder() == LayerOptions().folder() == RESULTS / device_slug(device_name())
    assert MemoryOptions().folder("memory") == RESULTS / device_slug(device_name()) / "memory"
    assert options.limit_bytes() is None
    assert MemoryOptions(device="cuda", out=tmp_path).folder("memory") == tmp_path
    with pytest.raises(ValueError, match="--device: expected cpu or cuda, got 'tpu'"):
        MemoryOptions(device="tpu").check()


def test_options_are_checked_again_without_the_command_line():
    for options in (MemoryOptions(), MemoryOptions.quick(), MemoryOptions.full()):
        options.check()
    with pytest.raises(ValueError, match="--frames"):
        MemoryOptions(frames=()).check()


def test_a_gpu_measures_the_paper_s_network_at_length():
    assert MemoryOptions.full("cuda").network() == Network.paper()
    assert MemoryOptions.full("cuda").limit_bytes() is None
    assert MemoryOptions.full().network() == MemoryOptions().network() == Network.small(16, 16)
