import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors here are tiny: where the machine is busy, threads would spend their time waiting for each other."""
    torch.set_num_threads(1)
