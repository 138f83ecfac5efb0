"""The public functions on every backend of this machine: shapes, layouts, empties, gradients, autocast, vmap."""

import pytest
import torch

from ssmvdm_kernels import (
    available_backends,
    bidirectional_conv1d,
    bidirectional_selective_scan,
    causal_conv1d,
    selective_scan,
)
from ssmvdm_kernels.ops import dense_like

from .cases import Case

SIZES = ("batch", "channels", "length", "lanes", "states")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def built(name):
    missing = name not in available_backends()
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"the {name} extension is not built"))


pytestmark = pytest.mark.parametrize("backend", ["reference", built("cpu")])
needs_cpu = pytest.mark.skipif("cpu" not in available_backends(), reason="the cpu extension is not built")


def arguments(has_gradients=False, **options):
    named = {name: tensor for name, tensor in Case(**options).inputs().items() if tensor is not None}
    return {name: tensor.detach().requires_grad_() for name, tensor in named.items()} if has_gradients else named


def conv_arguments(dtype=torch.float32, shape=(2, 3, 6, 2), width=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight, weight_b = torch.randn(
        2, shape[1], width, generator=generator, dtype=torch.promote_types(dtype, torch.float)
    )
    bias, bias_b = torch.randn(2, shape[1], generator=generator, dtype=weight.dtype)
    return {"x": x, "weight": weight, "bias": bias, "weight_b": weight_b, "bias_b": bias_b}


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_direction_returns_what_it_promises(backend, dtype):
    named = arguments(direction="forward", dtype=dtype, lanes=(2, 3), initial=True)
    y, last = selective_scan(**named, return_last_state=True, backend=backend)
    assert (y.shape, y.dtype) == (named["u"].shape, dtype)
    assert (last.shape, last.dtype) == ((2, 6, 4, 2, 3), named["A"].dtype)
    assert torch.equal(selective_scan(**named, backend=backend), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merge", ["sum", "mean", "cat", "none"])
def test_both_directions_return_what_they_promise(backend, dtype, merge):
    named = arguments(dtype=dtype)
    y = bidirectional_selective_scan(**named, merge=merge, backend=backend)
    batch, channels, *rest = named["u"].shape
    for part in y if merge == "none" else (y,):
        assert part.shape == (batch, channels * (2 if merge == "cat" else 1), *rest)
        assert part.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution_returns_what_it_promises(backend, dtype):
    named = conv_arguments(dtype)
    y, y_b = bidirectional_conv1d(**named, backend=backend)
    for result in (y, y_b):
        assert (result.shape, result.dtype) == (named["x"].shape, dtype)
    if dtype in (torch.bfloat16, torch.float16):
        stored = {name: tensor.to(dtype) for name, tensor in named.items()}
        assert bidirectional_conv1d(**stored, backend=backend)[0].dtype == dtype


@pytest.mark.parametrize("axis", SIZES)
@pytest.mark.parametrize("form", ["shared", "groups", "constant"])
def test_an_axis_of_size_zero_gives_an_empty_result_and_zero_gradients(backend, axis, form):
    size = {axis: (0, 2) if axis == "lanes" else 0}
    one = arguments(True, direction="forward", initial=True, B_form=form, C_form=form, **size)
    y, last = selective_scan(**one, delta_softplus=True, return_last_state=True, backend=backend)
    two = arguments(True, B_form=form, C_form=form, **size)
    both = bidirectional_selective_scan(**two, delta_softplus=True, backend=backend)
    assert y.shape == one["u"].shape and both.shape == two["u"].shape
    assert last.shape == one["initial_state"].shape
    if axis == "length":
        assert torch.equal(last, one["initial_state"])
    if axis == "states":
        return  # y = D u silu(z) is not empty, nor are its gradients
    (y.sum() + both.sum()).backward()
    for named in (one, two):
        for name, tensor in named.items():
            assert tensor.grad is None or not tensor.grad.any(), name


def test_no_states_leave_the_skip_connection(backend):
    named = arguments(direction="forward", states=0)
    expected = torch.nn.functional.silu(named["z"]) * named["D"][:, None, None] * named["u"]
    torch.testing.assert_close(selective_scan(**named, backend=backend), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 3, 4, 0)])
def test_convolution_of_an_empty_tensor(backend, shape):
    named = {name: tensor.requires_grad_() for name, tensor in conv_arguments(shape=shape).items()}
    y, y_b = bidirectional_conv1d(**named, backend=backend)
    assert y.shape == y_b.shape == shape
    (y.sum() + y_b.sum()).backward()
    assert not any(tensor.grad.any() for tensor in named.values())


def test_lengths_shorter_than_the_filter(backend):
    named = conv_arguments(shape=(1, 2, 2), width=7)
    y, y_b = bidirectional_conv1d(**named, backend=backend)
    torch.testing.assert_close(y, bidirectional_conv1d(**named, backend="reference")[0])
    torch.testing.assert_close(y_b, bidirectional_conv1d(**named, backend="reference")[1])


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction_of_the_convolution_is_half_of_both(backend, reverse, activation):
    """Output and gradients, bit for bit."""
    named = {name: tensor.requires_grad_() for name, tensor in conv_arguments(shape=(2, 3, 9, 2), width=4).items()}
    own = {name: named[f"{name}_b" if reverse else name] for name in ("weight", "bias")}
    options = {"activation": activation, "backend": backend}
    wanted = [named["x"], *own.values()]
    half = bidirectional_conv1d(**named, **options)[reverse]
    alone = causal_conv1d(named["x"], **own, reverse=reverse, **options)
    assert torch.equal(alone, half)
    dy = torch.randn_like(half)
    gradients = [torch.autograd.grad(y, wanted, dy) for y in (alone, half)]
    assert all(torch.equal(one, both) for one, both in zip(*gradients, strict=True))


def test_inputs_stay_and_outputs_are_new(backend):
    named = arguments(direction="forward", initial=True, length=1)
    before = {name: tensor.clone() for name, tensor in named.items()}
    outputs = selective_scan(**named, return_last_state=True, backend=backend)
    memory = {tensor.untyped_storage().data_ptr() for tensor in named.values()}
    assert all(output.untyped_storage().data_ptr() not in memory for output in outputs)
    assert all(torch.equal(named[name], before[name]) for name in named)


@pytest.mark.parametrize("used", ["y", "last_state", "both"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_whichever_output_is_used(backend, used, reverse):
    named = arguments(True, direction="forward", initial=True, dtype=torch.float64)

    def gradients(backend):
        options = {"delta_softplus": True, "return_last_state": True, "reverse": reverse, "backend": backend}
        y, last = selective_scan(**named, **options)
        loss = {"y": y.square().sum(), "last_state": last.square().sum(), "both": (y.sum() + last.square().sum())}[used]
        found = torch.autograd.grad(loss, named.values(), allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(named.values(), found, strict=True)]

    for name, got, expected in zip(named, gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("forms", [("groups", "shared"), ("constant", "groups"), ("three groups", "groups")])
def test_groups_of_B_and_C_are_independent(backend, forms):
    named = arguments(True, direction="forward", dtype=torch.float64, B_form=forms[0].split()[-1], C_form=forms[1])
    if forms[0] == "three groups":
        batch, _, *rest = named["B"].shape
        named["B"] = torch.randn(batch, 3, *rest, dtype=torch.float64, requires_grad=True)

    def outcome(backend):
        y = selective_scan(**named, delta_softplus=True, backend=backend)
        return y, *torch.autograd.grad(y.square().sum(), named.values())

    torch.testing.assert_close(outcome(backend), outcome("reference"))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_gradients_whichever_convolution_is_used(backend, used):
    named = {name: tensor.requires_grad_() for name, tensor in conv_arguments(torch.float64).items()}

    def gradients(backend):
        outputs = bidirectional_conv1d(**named, backend=backend)
        loss = sum(outputs[index].square().sum() for index in used)
        found = torch.autograd.grad(loss, named.values(), allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(named.values(), found, strict=True)]

    for got, expected in zip(gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(got, expected)


def test_only_wanted_gradients_exist(backend):
    named = arguments(separate="all")
    for wanted in ("u", "z", "B_b", "D"):
        call = {n: t.clone().requires_grad_(n == wanted) for n, t in named.items()}
        bidirectional_selective_scan(**call, delta_softplus=True, backend=backend).sum().backward()
        assert {name for name, tensor in call.items() if tensor.grad is not None} == {wanted}


def test_an_output_made_without_gradients_has_none(backend):
    named = arguments(True)
    with torch.inference_mode():
        assert not bidirectional_selective_scan(**named, backend=backend).requires_grad


@pytest.mark.parametrize("layout", ["lanes", "length", "channels", "mixed", "expanded", "narrowed", "batch-inner"])
def test_results_lie_in_memory_as_their_inputs_do(backend, layout):
    if backend == "reference":
        pytest.skip("the reference leaves layouts to PyTorch")
    named = arguments(True, layout=layout)
    y = bidirectional_selective_scan(**named, backend=backend)
    assert y.stride() == dense_like(named["u"]).stride()
    sequences = [named[name] for name in ("u", "delta", "z", "B", "C")]
    gradients = torch.autograd.grad(y.sum(), sequences)  # .backward() may lay them out anew
    for gradient, tensor in zip(gradients, sequences, strict=True):
        assert gradient.stride() == dense_like(tensor).stride()


# -- autocast ----------------------------------------------------------------------------------------------------------


def test_autocast_lowers_sequences_and_keeps_parameters(backend):
    named = arguments(dtype=torch.float32)
    sequences = ("u", "delta", "z", "B", "C", "u_b", "delta_b", "B_b", "C_b")
    low = {n: t.bfloat16() if n in sequences else t for n, t in named.items()}
    expected = bidirectional_selective_scan(**low, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bidirectional_selective_scan(**named, backend=backend), expected)
        mixed = named | {"delta": named["delta"].bfloat16(), "A": named["A"].bfloat16()}
        assert bidirectional_selective_scan(**mixed, backend=backend).dtype == torch.bfloat16
        assert bidirectional_conv1d(**conv_arguments(), backend=backend)[0].dtype == torch.bfloat16


def test_autocast_keeps_constant_modulation_in_float32(backend):
    named = arguments(direction="forward", B_form="constant")
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**named, backend=backend)
    low = {n: t.bfloat16() if n in ("u", "delta", "z", "C") else t for n, t in named.items()}
    assert torch.equal(y, selective_scan(**low, backend=backend))


def test_autocast_leaves_float64_alone(backend):
    with torch.autocast("cpu", torch.bfloat16):
        assert bidirectional_selective_scan(**arguments(dtype=torch.float64), backend=backend).dtype == torch.float64


def test_gradients_come_back_in_the_callers_dtype_through_autocast(backend):
    named = arguments(True)
    with torch.autocast("cpu", torch.bfloat16):
        y = bidirectional_selective_scan(**named, delta_softplus=True, backend=backend)
    y.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in named.values())


# -- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 3])
def test_vmap_is_a_loop(backend, samples):
    named = arguments(direction="forward")
    u = torch.randn(2, samples, *named["u"].shape[1:], generator=torch.Generator().manual_seed(2))
    A = named["A"].expand(samples, -1, -1) * torch.arange(1.0, samples + 1)[:, None, None]
    others = {n: t for n, t in named.items() if n not in ("u", "A")}

    def call(u, A):
        return selective_scan(u=u, A=A, **others, return_last_state=True, backend=backend)

    y, last = torch.vmap(call, in_dims=(1, 0))(u, A)
    assert y.shape == (samples, *named["u"].shape) and last.shape == (samples, 2, 6, 4, 3)
    for sample in range(samples):
        torch.testing.assert_close((y[sample], last[sample]), call(u[:, sample], A[sample]))


def test_vmap_of_the_convolution_has_gradients(backend):
    named = conv_arguments()
    x = torch.stack((named.pop("x"),) * 2).requires_grad_()
    mapped = torch.vmap(lambda x: bidirectional_conv1d(x, **named, backend=backend))(x)
    (mapped[0] + mapped[1]).square().sum().backward()
    single = x.detach()[0].clone().requires_grad_()
    y, y_b = bidirectional_conv1d(single, **named, backend=backend)
    (y + y_b).square().sum().backward()
    torch.testing.assert_close(x.grad[1], single.grad)


def test_functional_gradients_and_their_vmap(backend):
    named = arguments(direction="forward", dtype=torch.float64)
    u = torch.stack((named.pop("u"),) * 2) * torch.tensor([1.0, 2.0], dtype=torch.float64).view(2, 1, 1, 1, 1)

    def loss(u):
        return selective_scan(u, **named, backend=backend).square().sum()

    leaf = u[1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(u[1]), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(u)[1], expected)


@needs_cpu
def test_second_derivatives_are_refused_in_words(backend):
    if backend == "reference":
        pytest.skip("the reference has second derivatives, see test_reference.py")
    named = arguments(True, direction="forward")
    (du,) = torch.autograd.grad(selective_scan(**named, backend=backend).square().sum(), named["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        du.sum().backward()
    conv = {name: tensor.requires_grad_() for name, tensor in conv_arguments().items()}
    y, _ = bidirectional_conv1d(**conv, backend=backend)
    (dx,) = torch.autograd.grad(y.sum(), conv["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        dx.sum().backward()


def test_forward_mode_is_right_or_refused(backend):
    named = arguments(direction="forward", dtype=torch.float64)
    u = named.pop("u")

    def call(u):
        return selective_scan(u, **named, backend=backend)

    if backend == "reference":
        tangent = torch.func.jvp(call, (u,), (u,))[1]
        torch.testing.assert_close(tangent, call(u))  # linear in u
    else:
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            torch.func.jvp(call, (u,), (u,))
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            torch.func.hessian(lambda u: call(u).sum())(u)
