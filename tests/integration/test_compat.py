"""The compatibility modules: their signatures, and their numbers against the layers that they stand for, spelt out."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from ssmvdm import convert
from ssmvdm_kernels import selective_scan
from ssmvdm_kernels.compat import mamba, vim, vmamba
from tests.conftest import require_backend
from tests.model import paper

from . import flips

SCAN = "u delta A B C D z delta_bias delta_softplus return_last_state"
LAYER = "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight"
OUT = "out_proj_weight out_proj_bias"
REST = "B C D delta_bias B_proj_bias C_proj_bias delta_softplus"
NORMS = "checkpoint_lvl b_rms_weight c_rms_weight dt_rms_weight b_c_dt_rms_eps"
SIGNATURES = {
    mamba.selective_scan_fn: SCAN,
    mamba.selective_scan_ref: SCAN,
    mamba.mamba_inner_fn: f"{LAYER} {OUT} A {REST} {NORMS}",
    mamba.mamba_inner_ref: f"{LAYER} {OUT} A {REST}",
    vim.bimamba_inner_fn: f"{LAYER} {OUT} A A_b {REST}",
    vim.mamba_inner_fn_no_out_proj: f"{LAYER} A {REST}",
    vim.Mamba: (
        "d_model d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias bias "
        "use_fast_path layer_idx device dtype bimamba_type if_divide_out init_layer_scale"
    ),
    vmamba.selective_scan_fn: "u delta A B C D delta_bias delta_softplus oflex backend",
}
DEFAULTS = {
    mamba.selective_scan_fn: [None, None, None, False, False],
    mamba.mamba_inner_fn: [None] * 6 + [True, 1, None, None, None, 1e-6],
    vim.bimamba_inner_fn: [None] * 6 + [True],
    vim.Mamba: [16, 4, 2, "auto", 0.001, 0.1, "random", 1.0, 1e-4, True, False, True, *[None] * 3, "none", False, None],
    vmamba.selective_scan_fn: [None, None, True, True, None],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_signatures_are_those_of_the_packages(function):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters] == SIGNATURES[function].split()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    if function in DEFAULTS:
        assert [p.default for p in parameters if p.default is not p.empty] == DEFAULTS[function]


def scan_arguments(groups=2, dtype=torch.float32):
    u, delta, z = (torch.randn(2, 4, 9, dtype=dtype) for _ in range(3))
    B, C = (torch.randn(2, groups, 3, 9, dtype=dtype) for _ in range(2))
    return u, delta, -torch.rand(4, 3), B, C, torch.randn(4), z, torch.randn(4)


def test_the_scans_are_ours_under_their_order_of_arguments():
    u, delta, A, B, C, D, z, bias = scan_arguments()
    expected = selective_scan(u, delta, A, B, C, D, z, bias, True, True)
    for got, wanted in zip(mamba.selective_scan_fn(u, delta, A, B, C, D, z, bias, True, True), expected, strict=True):
        assert torch.equal(got, wanted)
    torch.testing.assert_close(mamba.selective_scan_ref(u, delta, A, B, C, D, z, bias, True, True), expected)
    assert torch.equal(
        vmamba.selective_scan_fn(u, delta, A, B, C, D, bias),
        selective_scan(u, delta, A, B, C, D, None, bias, delta_softplus=True),
    )


def test_vmambas_seventh_argument_is_not_z():
    """A z there has three dimensions, a delta_bias has one."""
    u, delta, A, B, C, D, z, _ = scan_arguments()
    with pytest.raises(ValueError, match="delta_bias must have one value per channel of u"):
        vmamba.selective_scan_fn(u, delta, A, B, C, D, z)


@pytest.mark.parametrize("backend", [None, "oflex", "core", "mamba", "torch", "auto", "cpu", "reference"])
def test_vmambas_output_is_float_but_for_two_of_its_libraries(backend):
    if backend == "cpu":
        require_backend(backend)
    u, delta, A, B, C, D, _, bias = scan_arguments(dtype=torch.bfloat16)
    has_float = backend not in ("core", "mamba")
    for is_flexible in (True, False):
        y = vmamba.selective_scan_fn(u, delta, A, B, C, D, bias, True, is_flexible, backend)
        assert y.dtype == (torch.float32 if has_float and is_flexible else torch.bfloat16)
        floats = (tensor.float() for tensor in (u, delta, B, C))
        u32, delta32, B32, C32 = floats
        truth = selective_scan(u32, delta32, A, B32, C32, D, None, bias, True, backend="reference")
        torch.testing.assert_close(y, truth.to(y.dtype))
    with pytest.raises(ValueError, match="'triangle'"):
        vmamba.selective_scan_fn(u, delta, A, B, C, D, bias, backend="triangle")


def test_autocast_leaves_the_bare_scans_alone():
    arguments = scan_arguments()
    expected = mamba.selective_scan_fn(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mamba.selective_scan_fn(*arguments), expected)
        assert vmamba.selective_scan_fn(*arguments[:6]).dtype == torch.float32


def layer_tensors(is_variable_B=True, is_variable_C=True, channels=6, states=3, rank=2, dtype=torch.float64):
    rows = rank + states * (is_variable_B + is_variable_C)
    shapes = {
        "xz": (2, 2 * channels, 9), "conv1d_weight": (channels, 1, 4), "conv1d_bias": (channels,),
        "x_proj_weight": (rows, channels), "delta_proj_weight": (channels, rank), "out_proj_weight": (5, channels),
        "out_proj_bias": (5,), "A": (channels, states), "D": (channels,), "delta_bias": (channels,),
    }  # fmt: skip
    shapes |= {} if is_variable_B else {"B": (channels, states)}
    shapes |= {} if is_variable_C else {"C": (channels, states)}
    tensors = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def inner(t, A_b=None, B_proj_bias=None, C_proj_bias=None, b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None):
    """mamba_inner_fn, and with A_b bimamba_inner_fn, spelt out."""
    x, z = t["xz"].chunk(2, 1)
    u = flips.convolve(x, t["conv1d_weight"], t["conv1d_bias"])
    projected = F.linear(u.mT, t["x_proj_weight"])
    rank, states = t["delta_proj_weight"].shape[1], t["A"].shape[1]
    delta = F.linear(projected[..., :rank], t["delta_proj_weight"])
    B, C = t.get("B"), t.get("C")
    if B is None:
        B = projected[..., rank : rank + states] + (0 if B_proj_bias is None else B_proj_bias)
        B = (B if b_rms_weight is None else F.rms_norm(B, (states,), b_rms_weight, 1e-6)).mT
    if C is None:
        C = projected[..., -states:] + (0 if C_proj_bias is None else C_proj_bias)
        C = (C if c_rms_weight is None else F.rms_norm(C, (states,), c_rms_weight, 1e-6)).mT
    delta = (delta if dt_rms_weight is None else F.rms_norm(delta, delta.shape[-1:], dt_rms_weight, 1e-6)).mT
    y = flips.scan(u, delta, t["A"], B, C, t["D"], z, t["delta_bias"])
    if A_b is not None:
        flipped = (tensor.flip(-1) if tensor.dim() == 3 else tensor for tensor in (u, delta, B, C, z))
        u, delta, B, C, z = flipped
        y = y + flips.scan(u, delta, A_b, B, C, t["D"], z, t["delta_bias"]).flip(-1)
    return F.linear(y.mT, t["out_proj_weight"], t["out_proj_bias"])


def outcome(y, tensors):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, *torch.autograd.grad((y * weights).sum(), list(tensors.values()))


@pytest.mark.parametrize("is_variable_C", [True, False])
@pytest.mark.parametrize("is_variable_B", [True, False])
def test_inner_functions_are_the_layers_spelt_out(is_variable_B, is_variable_C):
    t = layer_tensors(is_variable_B, is_variable_C)
    expected = outcome(inner(t), t)
    for function in (mamba.mamba_inner_fn, mamba.mamba_inner_ref):
        torch.testing.assert_close(outcome(function(**t), t), expected)
    A_b = (t["A"].detach() * 0.7).requires_grad_()
    both = {**t, "A_b": A_b}
    torch.testing.assert_close(outcome(vim.bimamba_inner_fn(**both), both), outcome(inner(t, A_b), both))
    bare = {name: tensor for name, tensor in t.items() if not name.startswith("out_proj")}
    y = F.linear(vim.mamba_inner_fn_no_out_proj(**bare).mT, t["out_proj_weight"], t["out_proj_bias"])
    torch.testing.assert_close(outcome(y, t), expected)


def test_biases_and_norms_of_the_inner_function():
    t = layer_tensors()
    extra = {"B_proj_bias": 3, "C_proj_bias": 3, "b_rms_weight": 3, "c_rms_weight": 3, "dt_rms_weight": 6}
    extra = {name: torch.randn(size, dtype=torch.float64, requires_grad=True) for name, size in extra.items()}
    for name, tensor in extra.items():
        alone, tensors = {name: tensor}, {**t, name: tensor}
        torch.testing.assert_close(
            outcome(mamba.mamba_inner_fn(**tensors), tensors), outcome(inner(t, **alone), tensors)
        )  # fmt: skip
    everything = {**t, **extra}
    torch.testing.assert_close(
        outcome(mamba.mamba_inner_fn(**everything), everything), outcome(inner(t, **extra), everything)
    )
    t["B_proj_bias"] = None  # callers pass what they do not have as None
    assert mamba.mamba_inner_fn(**t).shape == (2, 9, 5)


def test_checkpoint_level_one_keeps_less_and_changes_no_bit():
    t = layer_tensors(channels=16, dtype=torch.float32)
    inputs = {tensor.untyped_storage().data_ptr() for tensor in t.values()}
    sizes, results = [], []
    for level in (0, 1):
        kept = {}

        def note(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = mamba.mamba_inner_fn(**t, checkpoint_lvl=level)
        sizes.append(sum(size for storage, size in kept.items() if storage not in inputs))
        results.append(outcome(y, t))
    assert sizes[1] == t["xz"].nbytes // 2 < sizes[0] / 3  # the scan's output, which the last projection keeps
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    with pytest.raises(ValueError, match="checkpoint_lvl must be one of 0, 1, but is 2"):
        mamba.mamba_inner_fn(**t, checkpoint_lvl=2)


def test_the_inner_function_under_autocast_and_with_a_float32_bias():
    """transformers hands over out_proj's bias in float32, whatever the model's dtype."""
    t = {name: tensor.detach() for name, tensor in layer_tensors(dtype=torch.float32).items()}
    expected = mamba.mamba_inner_fn(**t)
    with torch.autocast("cpu", torch.bfloat16):
        y = mamba.mamba_inner_fn(**t)
    low = {n: v if n in ("A", "D", "delta_bias", "out_proj_bias") else v.bfloat16() for n, v in t.items()}
    for got in (y, mamba.mamba_inner_fn(**low)):
        assert got.dtype == torch.bfloat16
        error = (got - expected).abs().max() / expected.abs().max()
        assert error < 8 * torch.finfo(torch.bfloat16).eps


def test_forms_that_callers_may_choose():
    """Filters without their middle axis, B that varies in time, parameters of other dtypes where those are cast."""
    t = {name: tensor.detach() for name, tensor in layer_tensors().items()}
    expected = mamba.mamba_inner_fn(**t)
    assert torch.equal(mamba.mamba_inner_fn(**t | {"conv1d_weight": t["conv1d_weight"].squeeze(1)}), expected)
    one_tap = {"conv1d_weight": t["conv1d_weight"][..., -1:]}
    one_tap_flat = {"conv1d_weight": one_tap["conv1d_weight"].squeeze(1)}
    assert torch.equal(mamba.mamba_inner_fn(**t | one_tap_flat), mamba.mamba_inner_fn(**t | one_tap))
    rounded = {name: t[name].bfloat16() for name in ("out_proj_bias",)} | {"B_proj_bias": torch.ones(3)}
    widened = {name: tensor.double() for name, tensor in rounded.items()}
    assert torch.equal(mamba.mamba_inner_fn(**t | rounded), mamba.mamba_inner_fn(**t | widened))

    rank, states = 2, 3
    x = t["xz"][:, :6]
    projected = torch.einsum("oi,bil->bol", t["x_proj_weight"], flips.convolve(x, t["conv1d_weight"], t["conv1d_bias"]))
    rows = torch.cat((t["x_proj_weight"][:rank], t["x_proj_weight"][rank + states :]))
    B = projected[:, rank : rank + states]
    for form in (B, B.unsqueeze(1)):
        torch.testing.assert_close(mamba.mamba_inner_fn(**t | {"B": form, "x_proj_weight": rows}), expected)

    with torch.autocast("cpu", torch.bfloat16):
        y = mamba.mamba_inner_fn(**t | {"xz": t["xz"].float()})
        z = mamba.mamba_inner_fn(**{name: tensor.float() for name, tensor in t.items()})
        assert torch.equal(y, z) and y.dtype == torch.bfloat16
        assert torch.equal(mamba.mamba_inner_fn(**t), expected)  # autocast leaves float64 alone


DIRECTION = {"conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "D"}
OUTER = {"in_proj.weight", "out_proj.weight", "A_log"}
NAMES = {
    "none": OUTER | DIRECTION,
    "v1": OUTER | DIRECTION | {"A_b_log"},
    "v2": OUTER
    | DIRECTION
    | {"A_b_log"}
    | {f"{n.partition('.')[0]}_b{n[len(n.partition('.')[0]) :]}" for n in DIRECTION},
}


def vim_layer(kind, seed=0, **options):
    torch.manual_seed(seed)
    layer = vim.Mamba(10, d_state=4, bimamba_type=kind, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "init_layer_scale": 0.5, "if_divide_out": True}, {"conv_bias": False, "use_fast_path": False}],
    ids=["default", "all", "bare"],
)
@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_vims_state_dicts_load_and_give_the_flipped_computation(kind, options):
    state = vim_layer(kind, **options).state_dict()
    if not options:
        assert set(state) == NAMES[kind]
        assert (state["x_proj.weight"].shape, state["conv1d.weight"].shape) == ((9, 20), (20, 1, 4))
    layer = vim_layer(kind, seed=1, **options)
    layer.load_state_dict(state, strict=True)
    state = {name: value.requires_grad_() for name, value in state.items()}
    x = torch.randn(3, 11, 10, dtype=torch.float64, requires_grad=True)
    expected = flips.vim(state, x, kind, options.get("if_divide_out", False))
    parameters = dict(layer.named_parameters())
    torch.testing.assert_close(
        outcome(layer(x), {"x": x, **parameters}),
        outcome(expected, {"x": x, **{name: state[name] for name in parameters}}),
    )


def test_vims_layer_begins_as_mambas_and_marks_its_parameters():
    layer = vim.Mamba(32, d_state=5, bimamba_type="v2", dt_init="constant", dt_scale=0.5, layer_idx=3)
    assert layer.layer_idx == 3 and layer.dt_rank == 2
    for suffix in ("", "_b"):
        projection = getattr(layer, f"dt_proj{suffix}")
        assert (projection.weight == 0.5 * 2**-0.5).all() and projection.bias._no_reinit
        step = F.softplus(projection.bias)
        assert 1e-3 * 0.999 <= step.min() and step.max() <= 1e-1 * 1.001 and step.std() > 0
    for name in ("A_log", "A_b_log"):
        torch.testing.assert_close(getattr(layer, name).exp(), torch.arange(1.0, 6).expand(64, 5))
    assert {n for n, p in layer.named_parameters() if hasattr(p, "_no_weight_decay")} == {
        "A_log",
        "A_b_log",
        "D",
        "D_b",
    }
    low = vim.Mamba(32, dtype=torch.bfloat16, bimamba_type="v1")
    assert low.A_log.dtype == low.D.dtype == torch.float32 and low.in_proj.weight.dtype == torch.bfloat16
    assert low(torch.randn(2, 5, 32).bfloat16()).dtype == torch.bfloat16


def test_the_papers_s6_layer_loads_and_gives_the_flipped_computation():
    truth = paper.load("layer_bi-s6_v20")
    layer = convert.temporal_layer_from_paper("bi-s6", truth.config, truth.state_dict).double()
    x = truth.tensors["x"].double()
    expected = flips.paper_mamba({name: tensor.double() for name, tensor in truth.state_dict.items()}, x)
    torch.testing.assert_close(paper.as_sequences(layer(paper.as_video(x))), expected)
