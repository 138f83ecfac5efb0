"""Outputs, losses and gradients against those of the authors' code."""

import pytest
import torch

from ssmvdm import GaussianDiffusion, convert
from ssmvdm.diffusion import to_model_range
from ssmvdm.temporal.s4d import S4D

from . import paper

OUTPUT, GRADIENT = 1e-5, 1e-4


@pytest.mark.parametrize("attention_backend", ["einsum", "sdpa"])
@pytest.mark.parametrize("name", paper.UNETS)
def test_unet(name, attention_backend):
    truth = paper.load(name)
    x0, noise, t, x_t = (truth.tensors[key] for key in ("x0", "noise", "t", "x_t"))
    model = convert.unet_from_paper(truth.config, truth.state_dict, attention_backend=attention_backend)
    diffusion = GaussianDiffusion(timesteps=256, loss="l2")

    torch.testing.assert_close(diffusion.q_sample(to_model_range(x0), t, noise), x_t)
    assert paper.relative_error(model(x_t, t), truth.tensors["eps"]) < OUTPUT
    loss = diffusion.training_loss(model, to_model_range(x0), t, noise)
    assert paper.relative_error(loss, truth.tensors["loss"]) < OUTPUT
    mean, _, log_variance = diffusion.p_mean_variance(model, x_t, t)
    assert paper.relative_error(mean, truth.tensors["p_mean"]) < OUTPUT
    assert paper.relative_error(log_variance, truth.tensors["p_logvar"]) < OUTPUT
    loss.backward()
    paper.check_gradients(model, truth.grads, GRADIENT)


def test_unet_by_fourier_transform():
    truth = paper.load("unet_bi-s4d_v20")
    model = convert.unet_from_paper(truth.config, truth.state_dict, s4d_form="fft")
    assert {module.form for module in model.modules() if isinstance(module, S4D)} == {"fft"}
    assert paper.relative_error(model(truth.tensors["x_t"], truth.tensors["t"]), truth.tensors["eps"]) < OUTPUT


def test_every_file_is_used():
    assert {path.stem for path in paper.DATA.glob("*.safetensors")} == {*paper.LAYERS, *paper.UNETS}


@pytest.mark.parametrize("memory", ["lean", "fast"])
@pytest.mark.parametrize("batched", [False, True], ids=["pixels", "batch"])
@pytest.mark.parametrize("name", paper.LAYERS)
def test_layer(name, batched, memory):
    """The same layer whether the sequences are pixels of one video or videos of one pixel."""
    truth = paper.load(name)
    arch = paper.architecture(name)
    check_layer(convert.temporal_layer_from_paper(arch, truth.config, truth.state_dict, memory=memory), truth, batched)


@pytest.mark.parametrize("name", [name for name in paper.LAYERS if "s4d" in name])
def test_layer_by_fourier_transform(name):
    truth = paper.load(name)
    arch = paper.architecture(name)
    check_layer(convert.temporal_layer_from_paper(arch, truth.config, truth.state_dict, s4d_form="fft"), truth, False)


def check_layer(layer, truth, batched):
    sequences = truth.tensors["x"].clone().requires_grad_()
    if batched:
        y = layer(sequences.transpose(1, 2)[..., None, None])[..., 0, 0].transpose(1, 2)
    else:
        y = paper.as_sequences(layer(paper.as_video(sequences)))
    assert paper.relative_error(y, truth.tensors["y"]) < OUTPUT
    (y * truth.tensors["w"]).sum().backward()
    assert paper.relative_error(sequences.grad, truth.tensors["dx"]) < GRADIENT
    assert set(truth.grads) == set(paper.paper_gradients(layer))
    paper.check_gradients(layer, truth.grads, GRADIENT)
