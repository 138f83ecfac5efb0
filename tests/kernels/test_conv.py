"""bidirectional_conv1d: outputs and gradients within an a priori bound, layouts, exact cases, threads."""

from __future__ import annotations

import itertools

import pytest
import torch

import ssmvdm_kernels

from . import cases, truth
from .bounds import check_beside_eager, compute_dtype, usage
from .checks import assert_same_bits, device_of, skip_float64_on_a_gpu
from .rounding import TINY, UNIT, Rounded, total

WIDTHS = (1, 2, 3, 4, 5, 8)
GRADIENTS = ("x", "weight", "bias", "weight_b", "bias_b")


EAGER_SEEDS = (0, 1, 2)  # the inputs themselves, and others: one eager run may be exact by luck


def tensors(shape, width, dtype, layout, separate, has_bias, device, seed=0):
    """x, weight, bias, weight_b, bias_b; weights in float32 (float64 with float64)."""
    generator = torch.Generator().manual_seed(width + shape[2] + 1000 * seed)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    wide = compute_dtype(dtype)
    found = {
        "x": cases.lay_out(draw(*shape).to(device, dtype), layout),
        "weight": draw(shape[1], width).to(device, wide),
    }
    found["bias"] = draw(shape[1]).to(device, wide) if has_bias else None
    found["weight_b"] = draw(shape[1], width).to(device, wide) if separate else None
    found["bias_b"] = draw(shape[1]).to(device, wide) if separate and has_bias else None
    return found


def shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """x[t - by] along axis 2, zeros outside."""
    if abs(by) >= x.shape[2]:
        return torch.zeros_like(x)
    pad = torch.zeros_like(x[:, :, : abs(by)])
    return torch.cat([pad, x[:, :, : x.shape[2] - by]], 2) if by >= 0 else torch.cat([x[:, :, -by:], pad], 2)


def bounded(inputs: dict, dys: tuple, activation: str | None) -> dict[str, Rounded]:
    """Both outputs and all gradients with their rounding errors: each is one sum of products."""
    dtype = inputs["x"].dtype
    unit, tiny = UNIT[compute_dtype(dtype)] + UNIT[torch.float64], TINY[compute_dtype(dtype)]
    wide = {name: None if v is None else v.detach().cpu().double() for name, v in inputs.items()}

    def number(value):
        return Rounded(value, torch.zeros_like(value), unit, tiny)

    x = wide["x"]
    column = (1, -1, *[1] * (x.dim() - 2))
    rest = tuple(d for d in range(x.dim()) if d != 1)
    found, parts = {}, {}
    for anticausal, dy in zip((False, True), dys, strict=True):
        suffix = "_b" if anticausal and wide["weight_b"] is not None else ""
        weight = wide["weight" + suffix]
        name_of_bias = "bias_b" if anticausal and wide["bias_b"] is not None else "bias"
        bias, width = wide[name_of_bias], weight.shape[1]
        lags = [(width - 1 - k) * (-1 if anticausal else 1) for k in range(width)]
        taps = [
            (number(weight[:, k].reshape(column).expand_as(x)) * number(shifted(x, lags[k])), ()) for k in range(width)
        ]
        start = [] if bias is None else [(number(bias.reshape(column).expand_as(x)), ())]
        before = total(*start, *taps)
        g = number(dy.cpu().double())
        if activation == "silu":
            sigma, one = before.sigmoid(), number(torch.ones_like(x))
            found["y_b" if anticausal else "y"] = before * sigma
            g = g * (sigma * (one + before * (one + sigma.scaled(-1))))
        else:
            found["y_b" if anticausal else "y"] = before
        for k, lag in enumerate(lags):
            moved = g.map(lambda v, lag=lag: shifted(v, -lag))
            parts.setdefault("x", []).append((moved * number(weight[:, k].reshape(column).expand_as(x)), ()))
            parts.setdefault(("weight" + suffix, k), []).append((g * number(shifted(x, lag)), rest))
        if bias is not None:
            parts.setdefault(name_of_bias, []).append((g, rest))
    sums = {key: total(*terms) for key, terms in parts.items()}
    for name in ("weight", "weight_b"):
        if wide[name] is not None:
            columns = [sums.pop((name, k)) for k in range(wide[name].shape[1])]
            sums[name] = columns[0].of(
                *(torch.stack(v, 1) for v in ([c.value for c in columns], [c.error for c in columns]))
            )
    found |= sums
    return {
        name: value.stored(dtype if name in ("x", "y", "y_b") else compute_dtype(dtype))
        for name, value in found.items()
    }


def run_conv(inputs: dict, dys: tuple, activation, backend: str) -> dict[str, torch.Tensor]:
    """Outputs and gradients by the library."""
    skip_float64_on_a_gpu(inputs["x"])
    leaves = {name: None if v is None else v.detach().requires_grad_() for name, v in inputs.items()}
    y, y_b = ssmvdm_kernels.bidirectional_conv1d(
        leaves["x"], leaves["weight"], leaves["bias"], weight_b=leaves["weight_b"], bias_b=leaves["bias_b"],
        activation=activation, backend=backend,
    )  # fmt: skip
    names = [name for name in GRADIENTS if leaves[name] is not None]
    gradients = torch.autograd.grad([y, y_b], [leaves[name] for name in names], list(dys))
    return dict(zip(names, gradients, strict=True)) | {"y": y.detach(), "y_b": y_b.detach()}


SHAPES = [(2, 5, 1, 3), (2, 5, 7, 3), (1, 19, 33, 17), (3, 16, 16), (2, 3, 5, 2, 3), (1, 2, 130, 4)]
CASES = [
    (shape, width, dtype, layout, separate, has_bias, activation)
    for index, (shape, width, dtype, layout) in enumerate(
        itertools.product(SHAPES, WIDTHS, cases.DTYPES, (*cases.LAYOUTS, "narrowed", "offset"))
    )
    if index % 3 == 0
    for separate, has_bias, activation in [((index % 2) == 0, index % 5 != 0, None if index % 7 == 0 else "silu")]
]


def name_of(value) -> str:
    return str(value).removeprefix("torch.").replace(" ", "")


@pytest.mark.parametrize(
    ("shape", "width", "dtype", "layout", "separate", "has_bias", "activation"), CASES, ids=name_of
)
def test_accuracy(shape, width, dtype, layout, separate, has_bias, activation, backend):
    device = device_of(backend)
    inputs = tensors(shape, width, dtype, layout, separate, has_bias, device)
    dys = tuple(cases.lay_out(torch.randn(shape).to(device, dtype), layout) for _ in range(2))
    expected = bounded(inputs, dys, activation)
    eager = []
    for seed in EAGER_SEEDS if dtype != torch.float64 else ():
        drawn = tensors(shape, width, dtype, layout, separate, has_bias, "cpu", seed)
        given = tuple(dy.cpu() for dy in dys)
        truth_of_it = bounded(drawn, given, activation)
        found = run_conv(drawn, given, activation, "reference")
        eager.append({name: usage(value, truth_of_it[name], value.dtype) for name, value in found.items()})
    for name, value in run_conv(inputs, dys, activation, backend).items():
        number = expected[name]
        used = usage(value, number, value.dtype)
        assert used.max() <= 1, f"{name}: {used.max():.3g} of its a priori bound"
        if eager:
            step = torch.maximum(UNIT[value.dtype] * number.value.abs(), number.unit * number.spread())
            beside = [run[name] for run in eager]
            check_beside_eager(name, used, beside, step / (number.error + TINY[torch.float64]), not value.is_cuda)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_any_number_of_threads(layout, dtype, compiled_backend):
    inputs = tensors((3, 35, 12, 37), 4, dtype, layout, True, True, device_of(compiled_backend))
    dys = tuple(torch.randn_like(inputs["x"]) for _ in range(2))
    torch.set_num_threads(1)
    wanted = run_conv(inputs, dys, "silu", compiled_backend)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        assert_same_bits(run_conv(inputs, dys, "silu", compiled_backend), wanted, f"{threads} threads")


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_directions_exchanged_with_time(layout, compiled_backend):
    inputs = tensors((2, 18, 9, 5), 4, torch.float32, layout, True, True, device_of(compiled_backend))
    y, y_b = (torch.zeros_like(inputs["x"]) for _ in range(2))
    found = run_conv(inputs, (y, y_b), "silu", compiled_backend)
    other = {"x": inputs["x"].flip(2), "weight": inputs["weight_b"], "bias": inputs["bias_b"],
             "weight_b": inputs["weight"], "bias_b": inputs["bias"]}  # fmt: skip
    back = run_conv(other, (y, y_b), "silu", compiled_backend)
    assert_same_bits(found["y"], back["y_b"].flip(2))
    assert_same_bits(found["y_b"], back["y"].flip(2))


@pytest.mark.parametrize("axis", range(4))
def test_size_zero(axis, backend):
    shape = [2, 3, 4, 5]
    shape[axis] = 0
    inputs = tensors(shape, 4, torch.float32, "lanes", True, True, device_of(backend))
    dys = (torch.zeros_like(inputs["x"]),) * 2
    for name, value in run_conv(inputs, dys, "silu", backend).items():
        wanted = torch.zeros(shape if name in ("y", "y_b") else inputs[name].shape)
        assert_same_bits(value.cpu(), wanted, name)


def test_every_element_is_written(backend):
    inputs = tensors((2, 19, 7, 5), 4, torch.float32, "lanes", True, True, device_of(backend))
    dys = tuple(torch.randn_like(inputs["x"]) for _ in range(2))
    wanted = run_conv(inputs, dys, "silu", backend)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert_same_bits(run_conv(inputs, dys, "silu", backend), wanted)


@pytest.mark.parametrize("time", [0, 3, 8])
def test_a_nan_reaches_only_the_filter_around_it(time, compiled_backend):
    width = 4
    inputs = tensors((2, 18, 9, 5), width, torch.float32, "lanes", True, True, device_of(compiled_backend))
    zero = (torch.zeros_like(inputs["x"]),) * 2
    clean = run_conv(inputs, zero, "silu", compiled_backend)
    inputs["x"][1, 7, time, 2] = torch.nan
    found = run_conv(inputs, zero, "silu", compiled_backend)
    for name, reach in (("y", range(time, time + width)), ("y_b", range(time - width + 1, time + 1))):
        wanted = clean[name].clone()
        wanted[1, 7, [t for t in reach if 0 <= t < 9], 2] = torch.nan
        assert_same_bits(found[name], wanted, name)


def test_truth_of_the_outputs(backend):
    """The tap-by-tap truth of truth.py gives the same outputs as the bounds used here."""
    inputs = tensors((2, 5, 7, 3), 4, torch.float64, "lanes", True, True, "cpu")
    expected = bounded(inputs, (inputs["x"],) * 2, "silu")
    for name, anticausal, suffix in (("y", False, ""), ("y_b", True, "_b")):
        value = truth.conv(inputs["x"], inputs["weight" + suffix], inputs["bias" + suffix], anticausal, True)
        assert usage(value, expected[name], torch.float64).max() <= 1


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("layout", ["lanes", "channels", "length"])
def test_what_is_not_finite_touches_what_it_must(layout, poison):
    """Outside the sequence there is nothing, and not zeros that would make NaN of an infinite weight or gradient."""
    if "cpu" not in ssmvdm_kernels.available_backends():
        pytest.skip("the cpu extension is not built")
    shape, width = (2, 17, 6), 4
    inputs = tensors(shape, width, torch.float32, layout, True, True, "cpu")
    inputs["weight"][3, 0] = poison
    inputs["weight_b"][5, 1] = poison
    generator = torch.Generator().manual_seed(0)
    dys = tuple(torch.randn(shape, generator=generator) for _ in range(2))
    dys[0][1, 2, 1] = dys[1][0, 4, 4] = poison
    found, expected = (run_conv(dict(inputs), dys, None, backend) for backend in ("cpu", "reference"))
    for name, value in expected.items():
        assert torch.equal(found[name].isnan(), value.isnan()), name
        assert torch.equal(found[name].isinf(), value.isinf()), name
    dx = found["x"]  # the first tap of channel 3 meets x at times 0 to 2 alone
    assert not dx[1, 3, :3].isfinite().any() and dx[0, 3, 3:].isfinite().all()
