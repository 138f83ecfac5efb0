"""The S4D scan: against float64 with bounds carried through the recurrence, bit-exact cases, operators, errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvdm_kernels import bidirectional_s4d_scan, explain, s4d_scan
from ssmvdm_kernels.operators import COMPILED, Operators
from ssmvdm_kernels.ops_s4d import NEEDS_Y, S4dTensors
from tests.conftest import COMPILED_BACKENDS

from .bounds import check_beside_eager
from .checks import assert_same_bits, device_of, operators_of

LAYOUTS = ("channels", "lanes", "length")
NAMES = ("u", "decay", "weight", "D", "z", "u_b", "decay_b", "weight_b", "D_b")
SHAPES = {  # batch, channels, length, lanes, modes
    "one": (1, 1, 1, (), 1),
    "odd": (2, 5, 7, (), 3),
    "lanes": (1, 33, 20, (3, 5), 8),
    "modes 6": (3, 24, 9, (2,), 6),
    "long": (1, 9, 257, (), 5),
    "many lanes": (2, 3, 33, (17,), 4),
    # Long for their modes, and so walked as a recurrence; the others, but for "long", are convolved directly.
    "recurrence": (2, 20, 30, (3,), 2),
    "recurrence over lanes": (1, 3, 65, (9,), 3),
}
EAGER_SEEDS = (0, 1, 2)  # the inputs themselves, and others: one eager run may be exact by luck
UNIT_SHARE = 0.01  # of the a priori bound, which a single rounding is at most
MERGES = ("sum", "mean", "cat", "none")
BUILT = [backend for backend in COMPILED_BACKENDS if backend != "triton"]  # whose tiles do not depend on the lanes


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values of (batch, channels, length, *lanes) with channels, length or lanes contiguous."""
    if layout == "lanes":
        return x.contiguous()
    axis = 1 if layout == "channels" else 2
    return x.movedim(axis, -1).contiguous().movedim(-1, axis)


def made(shape: str | tuple, dtype=torch.float64, layout="lanes", has_z=True, has_reverse=True, seed=0) -> dict:
    """Random arguments whose modes decay slowly and turn fast, as S4D's do."""
    batch, channels, length, lanes, modes = SHAPES[shape] if isinstance(shape, str) else shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    inputs = {}
    for suffix in ("", "_b") if has_reverse else ("",):
        inputs["u" + suffix] = normal(batch, channels, length, *lanes)
        decay = torch.exp(-0.2 * normal(channels, modes).abs())
        inputs["decay" + suffix] = torch.polar(decay, 3 * normal(channels, modes))
        inputs["weight" + suffix] = torch.complex(normal(channels, modes), normal(channels, modes))
        inputs["D" + suffix] = normal(channels)
    if has_z:
        inputs["z"] = normal(batch, channels, length, *lanes)
    return {name: cast(name, value, dtype, layout) for name, value in inputs.items()}


def cast(name: str, value: Tensor, dtype: torch.dtype, layout: str = "lanes") -> Tensor:
    """A sequence in `dtype`, a parameter in the type that goes with it."""
    if name in ("u", "z", "u_b"):
        return laid_out(value.to(dtype), layout)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    return value.to(parameter.to_complex() if value.is_complex() else parameter)


def on(device: str, inputs: dict) -> dict:
    return {name: value.to(device) for name, value in inputs.items()}


def call(inputs: dict, merge: str, backend: str = "cpu") -> Tensor:
    """On the device of the inputs. merge also names the single directions: "forward", "reverse"."""
    if merge in ("forward", "reverse"):
        single = {name: inputs[name] for name in NAMES[:5] if name in inputs}
        return s4d_scan(**single, reverse=merge == "reverse", backend=backend)
    y = bidirectional_s4d_scan(**inputs, merge=merge, backend=backend)
    return torch.cat(y, 1) if merge == "none" else y


def used(inputs: dict, merge: str) -> dict:
    one = merge in ("forward", "reverse")
    return {name: value for name, value in inputs.items() if not (one and name.endswith("_b"))}


def run(inputs: dict, merge: str, dy: Tensor | None = None, backend: str = "cpu") -> dict[str, Tensor]:
    """y and the gradients, computed on the backend's device and brought to the CPU."""
    given = on(device_of(backend), used(inputs, merge))
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    y = call(leaves, merge, backend)
    if dy is None:
        dy = gradient(y)
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(y.device, y.dtype))
    return on("cpu", {"y": y.detach(), **dict(zip(leaves, grads, strict=True))})


def gradient(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)


def wide(inputs: dict) -> dict:
    return {n: v.to(torch.complex128 if v.is_complex() else torch.float64) for n, v in inputs.items()}


def gates(z: Tensor | None, merge: str) -> tuple[Tensor | float, Tensor | float]:
    """|silu(z)| and |silu'(z)| without its cancellation, twice where merge keeps the directions apart."""
    if z is None:
        return 1.0, 1.0
    s = torch.sigmoid(z)
    both = (F.silu(z).abs(), s * (1 + z.abs() * (1 - s)))
    return tuple(torch.cat((g, g), 1) for g in both) if merge in ("cat", "none") else both


def bounds(inputs: dict, merge: str, dy: Tensor) -> dict[str, Tensor]:
    """A priori rounding bounds in float32 arithmetic, from the recurrence on absolute values.

    One step h = decay h + u costs at most 4 roundings of |decay| |h| + |u|, so h_t is known to 4 (t + 1) units of the
    state that absolute values would give, and so is the adjoint. Taps, which are powers of decay by as many products of
    at most 4 roundings, are known to the same, and a convolution with them adds one rounding per tap. An output adds
    two products per mode, then D, merge and gate; a gradient of a parameter adds one rounding per term of its sum. silu
    in vectors: 8 units.
    """
    inputs, dy = wide(inputs), dy.double()
    gate, slope = gates(inputs.pop("z", None), merge)
    magnitude = {n: torch.complex(v.abs(), torch.zeros(v.shape, dtype=torch.float64)) if v.is_complex() else v.abs()
                 for n, v in inputs.items()}  # fmt: skip
    found = run(magnitude, merge, dy.abs() * gate, "reference")
    length, modes = inputs["u"].shape[2], inputs["decay"].shape[1]
    terms = inputs["u"].numel() / max(1, inputs["u"].shape[1])
    eps = torch.finfo(torch.float32).eps
    once, twice = 5 * (length + 1) + 2 * modes + 16, 10 * (length + 1) + 2 * modes + 16
    limit = {"y": once * eps * found["y"] * gate, "z": once * eps * (found["y"] * slope * dy.abs())}
    if merge in ("cat", "none"):
        limit["z"] = sum(limit["z"].chunk(2, dim=1))
    for name, value in found.items():
        if name != "y":
            steps = once if name in ("u", "u_b") else terms + (once if name.startswith("D") else twice)
            limit[name] = steps * eps * value.abs()
    return limit


def used_of_bounds(found: dict, inputs: dict, merge: str) -> dict[str, Tensor]:
    """Errors by their a priori bounds; assertion that all numbers have the right types."""
    dy = gradient(found["y"])
    truth, limit = run(wide(inputs), merge, dy.double(), "reference"), bounds(used(inputs, merge), merge, dy)
    errors = {}
    for name, value in found.items():
        assert value.dtype == (inputs["u"] if name == "y" else inputs[name]).dtype
        stored = torch.finfo(value.dtype).eps / 2 if value.dtype in (torch.bfloat16, torch.float16) else 0.0
        allowed = limit[name] + stored * (truth[name].abs() + limit[name]) + torch.finfo(value.dtype).smallest_normal
        errors[name] = (value.to(truth[name].dtype) - truth[name]).abs() / allowed
    return errors


def check(inputs: dict, merge: str, backend: str = "cpu", eager_inputs: Sequence[dict] = ()) -> None:
    """eager_inputs: others of the same shape, on which the reference errs too; without, the a priori bound alone."""
    found = run(inputs, merge, backend=backend)
    eager = [used_of_bounds(run(other, merge, backend="reference"), other, merge) for other in eager_inputs]
    for name, share in used_of_bounds(found, inputs, merge).items():
        assert (share <= 1).all(), f"{name}: {share.max().item():.2f} of what rounding allows"
        if eager:
            unit = torch.full_like(share, UNIT_SHARE)
            is_exact = device_of(backend) == "cpu"
            check_beside_eager(f"{merge}, {name}", share, [run[name] for run in eager], unit, is_exact)


@pytest.mark.parametrize("merge", (*MERGES, "forward", "reverse"))
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_stays_within_rounding(shape, merge, compiled_backend):
    for layout, has_z in itertools.product(LAYOUTS, (True, False)):
        seeds = EAGER_SEEDS if layout == "lanes" else ()
        beside = [made(shape, torch.float32, has_z=has_z, seed=seed) for seed in seeds]
        check(made(shape, torch.float32, layout, has_z), merge, compiled_backend, beside)
    check(made(shape, torch.float32, has_reverse=False), merge, compiled_backend)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("merge", ("sum", "cat", "reverse"))
def test_half_precision_rounds_once(dtype, merge, compiled_backend):
    for shape, layout in itertools.product(("odd", "lanes", "many lanes"), LAYOUTS):
        beside = [made(shape, dtype, seed=seed) for seed in EAGER_SEEDS] if layout == "lanes" else ()
        check(made(shape, dtype, layout), merge, compiled_backend, beside)


def test_the_bound_notices_a_wrong_mode():
    inputs = made("lanes", torch.float32)
    truth, wrong = run(wide(inputs), "sum", backend="reference"), dict(inputs)
    wrong["weight"] = inputs["weight"].clone()
    wrong["weight"][:, -1] *= 1.001
    y = call(wrong, "sum")
    limit = bounds(inputs, "sum", torch.ones_like(y))["y"]
    assert ((y - truth["y"]).abs() > limit).any()


@pytest.mark.parametrize("merge", ("sum", "cat", "forward", "reverse"))
def test_reference_equals_the_dense_matrix(merge):
    """y = K u with K_ts = 2 Re sum_n weight decay^(t-s): the convolution that the recurrence stands for."""
    inputs = made((2, 4, 19, (), 5), has_z=False)
    lag = torch.arange(19)[:, None] - torch.arange(19)[None, :]

    def dense(suffix: str, sign: int) -> Tensor:
        power = (sign * lag).clamp(min=0)
        taps = inputs["decay" + suffix][..., None, None] ** power * inputs["weight" + suffix][..., None, None]
        kernel = 2 * taps.sum(1).real * (sign * lag >= 0)
        u = inputs["u" + suffix]
        return torch.einsum("cts,bcs->bct", kernel, u) + inputs["D" + suffix][:, None] * u

    parts = {"forward": lambda: dense("", 1), "reverse": lambda: dense("", -1),
             "sum": lambda: dense("", 1) + dense("_b", -1),
             "cat": lambda: torch.cat((dense("", 1), dense("_b", -1)), 1)}  # fmt: skip
    for backend in ("reference", "cpu"):
        torch.testing.assert_close(call(inputs, merge, backend), parts[merge](), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("merge", ("sum", "mean", "none", "reverse"))
@pytest.mark.parametrize("backend", ("cpu", "reference"))
def test_gradcheck(backend, merge):
    inputs = used(made((1, 3, 5, (2,), 2)), merge)
    leaves = [value.requires_grad_() for value in inputs.values()]

    def function(*values):
        return call(dict(zip(inputs, values, strict=True)), merge, backend)

    assert torch.autograd.gradcheck(function, leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(function, leaves)
    else:
        y = function(*leaves)
        (du,) = torch.autograd.grad(y.sum(), leaves[:1], create_graph=True)
        with pytest.raises(NotImplementedError, match="reference"):
            du.sum().backward()


def test_layouts_give_the_same_bits():
    for merge, shape in itertools.product(("sum", "cat"), ("lanes", "recurrence")):
        results = [run(made(shape, torch.float32, layout), merge) for layout in LAYOUTS]
        names = ("y", "u", "u_b", "z")  # sums over sequences are added in the order of the layout
        for other in results[1:]:
            assert_same_bits({n: other[n] for n in names}, {n: results[0][n] for n in names})


def test_every_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        for shape, layout in itertools.product(("lanes", "many lanes", "odd", "recurrence"), LAYOUTS):
            inputs = made(shape, torch.float32, layout)
            results = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                results.append(run(inputs, "sum"))
            for other in results[1:]:
                assert_same_bits(other, results[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("compiled_backend", BUILT, indirect=True)
@pytest.mark.parametrize("shape", ["many lanes", "recurrence over lanes"])
def test_parts_are_computed_as_the_whole_is(shape, compiled_backend):
    inputs = on(device_of(compiled_backend), made(shape, torch.float32))
    y = call(inputs, "sum", compiled_backend)
    lanes = {n: (v[..., 2:8] if v.dim() > 2 else v) for n, v in inputs.items()}
    assert_same_bits(call(lanes, "sum", compiled_backend), y[..., 2:8])
    batch = {n: (v[-1:] if v.dim() > 2 else v) for n, v in inputs.items()}
    assert_same_bits(call(batch, "sum", compiled_backend), y[-1:])
    channels = {n: (v[:, 1:] if v.dim() > 2 else v[1:]) for n, v in inputs.items()}
    assert_same_bits(call(channels, "sum", compiled_backend), y[:, 1:])


@pytest.mark.parametrize("compiled_backend", BUILT, indirect=True)
@pytest.mark.parametrize("shape", ["lanes", "recurrence"])
def test_swapping_directions_and_time_gives_the_same_bits(shape, compiled_backend):
    inputs = on(device_of(compiled_backend), made(shape, torch.float32))
    swapped = {}
    for name in ("u", "decay", "weight", "D"):
        swapped[name], swapped[name + "_b"] = inputs[name + "_b"], inputs[name]
    swapped["z"] = inputs["z"]
    swapped = {n: v.flip(2) if n in ("u", "u_b", "z") else v for n, v in swapped.items()}
    assert_same_bits(call(swapped, "sum", compiled_backend).flip(2), call(inputs, "sum", compiled_backend))


def test_integers_are_exact(compiled_backend):
    """decay i turns a quarter each step: with whole numbers nothing is rounded."""
    inputs = made("long", torch.float32, has_z=False)
    for name, value in inputs.items():
        inputs[name] = torch.full_like(value, 1j) if name.startswith("decay") else value.real.round().to(value.dtype)
    dy = torch.ones(1, 9, 257)
    found, truth = run(inputs, "sum", dy, compiled_backend), run(wide(inputs), "sum", dy, "reference")
    assert_same_bits({n: v.to(truth[n].dtype).abs() for n, v in found.items()}, {n: v.abs() for n, v in truth.items()})


@pytest.mark.parametrize("shape", ["many lanes", "recurrence"])
def test_nan_touches_what_comes_after_it_and_nothing_else(shape, compiled_backend):
    inputs = on(device_of(compiled_backend), made(shape, torch.float32))
    clean = call(inputs, "cat", compiled_backend)
    inputs["u"][0, 2, 11, 1] = torch.nan
    y = call(inputs, "cat", compiled_backend)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[0, 2, 11:, 1] = True
    assert torch.equal(torch.isnan(y), touched)
    assert_same_bits(y[~touched], clean[~touched])


@pytest.mark.parametrize("empty", range(5))
def test_empty_tensors_give_empty_results_and_zero_gradients(empty, compiled_backend):
    size = [2, 3, 4, 5, 2]
    size[empty] = 0
    inputs = made((*size[:3], (size[3],), size[4]), torch.float32)
    for merge, backend in itertools.product(("sum", "cat", "reverse"), (compiled_backend, "reference")):
        found = run(inputs, merge, backend=backend)
        for name, value in found.items():
            if name != "y":
                assert value.shape == inputs[name].shape
                assert empty == 4 or (value == 0).all()


def test_expanded_and_misaligned_tensors(compiled_backend):
    inputs = on(device_of(compiled_backend), made("lanes", torch.float32))
    plain = run(inputs, "sum", torch.ones_like(inputs["u"]), compiled_backend)
    dy = torch.ones_like(inputs["D"][0]).expand(inputs["u"].shape)
    shifted = {n: torch.cat((v.flatten()[:1], v.flatten()))[1:].view(v.shape) for n, v in inputs.items()}
    assert_same_bits(run(shifted, "sum", dy, compiled_backend), plain)


def test_backward_can_return_the_output(compiled_backend):
    operators = operators_of(compiled_backend)
    for merge, z, shape in itertools.product((0, 1, 2), (True, False), ("lanes", "recurrence")):
        inputs = made(shape, torch.float32, has_z=z)
        tensors = real(on(device_of(compiled_backend), inputs))
        y = operators.s4d_forward(*tensors, 2, merge)
        assert_same_bits(operators.s4d_backward(torch.ones_like(y), *tensors, 2, merge, NEEDS_Y)[-1], y)


def real(inputs: dict) -> S4dTensors:
    values = (inputs.get(name) for name in NAMES)
    return S4dTensors(*(torch.view_as_real(v) if v is not None and v.is_complex() else v for v in values))


def test_opcheck(compiled_backend):
    opcheck(operators_of(compiled_backend), device=device_of(compiled_backend))


def opcheck(operators: Operators, shape: str | tuple = "modes 6", device: str = "cpu") -> None:
    """Forward with gradients; backward for none, all and every second of them."""
    for has_z, merge in ((True, 0), (False, 2)):
        tensors = real(on(device, made(shape, torch.float32, has_z=has_z)))
        leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(operators.s4d_forward, (*leaves, 2, merge))
        y = operators.s4d_forward(*tensors, 2, merge)
        for needs in (0, 0b101010101, (1 << 10) - 1):
            arguments = (torch.ones_like(y), *tensors, 2, merge, needs)
            torch.library.opcheck(operators.s4d_backward, arguments)


def test_compile_export_meta_vmap_autocast():
    inputs = made("modes 6", torch.float32)
    y = call(inputs, "sum", "auto")
    assert_same_bits(torch.compile(call, fullgraph=True, backend="aot_eager")(inputs, "sum", "auto"), y)

    class Layer(torch.nn.Module):
        def forward(self, u, decay, weight):
            return s4d_scan(u, decay, weight)

    arguments = tuple(inputs[name] for name in ("u", "decay", "weight"))
    program = torch.export.export(Layer(), arguments)
    assert_same_bits(program.module()(*arguments), s4d_scan(*arguments))

    meta = {name: value.to("meta") for name, value in inputs.items()}
    assert call(meta, "cat", "auto").shape == (3, 48, 9, 2)

    mapped = torch.vmap(lambda u: s4d_scan(u[None], *arguments[1:])[0])(inputs["u"])
    assert_same_bits(mapped, s4d_scan(*arguments))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = call(inputs, "sum")
    halves = {n: v.to(torch.bfloat16) if n in ("u", "z", "u_b") else v for n, v in inputs.items()}
    assert_same_bits(low, call(halves, "sum"))
    assert "cpu: takes the call" in explain(inputs["u"])


WRONG = {
    "decay as real": ({"decay": torch.ones(5, 3)}, TypeError, "decay must be complex64"),
    "decay of other channels": ({"decay": torch.ones(4, 3, dtype=torch.complex64)}, ValueError, "decay must have"),
    "decay in three dimensions": ({"decay": torch.ones(5, 3, 2, dtype=torch.complex64)}, ValueError, "decay must have"),
    "weight of other modes": ({"weight": torch.ones(5, 4, dtype=torch.complex64)}, ValueError, "weight must have"),
    "weight in double": ({"weight": torch.ones(5, 3, dtype=torch.complex128)}, TypeError, "weight must be complex64"),
    "D complex": ({"D": torch.ones(5, dtype=torch.complex64)}, TypeError, "D must be float32"),
    "D too long": ({"D": torch.ones(6)}, ValueError, "D must have"),
    "z of another shape": ({"z": torch.ones(2, 5, 8)}, ValueError, "z must have the shape of u"),
    "z of another type": ({"z": torch.ones(2, 5, 7, dtype=torch.float64)}, TypeError, "z must be float32"),
    "u_b elsewhere": ({"u_b": torch.ones(2, 5, 7, device="meta")}, ValueError, "u_b must be on the device of u"),
    "u of integers": ({"u": torch.ones(2, 5, 7, dtype=torch.int32)}, TypeError, "u must be float32"),
    "u without length": ({"u": torch.ones(2, 5)}, ValueError, "u must have the shape"),
    "no decay": ({"decay": None}, TypeError, "decay must be a torch.Tensor"),
    "weight a list": ({"weight": [1.0]}, TypeError, "weight must be a torch.Tensor"),
    "unknown merge": ({"merge": "both"}, ValueError, "merge must be one of"),
    "unknown backend": ({"backend": "gpu"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    changes, error, message = WRONG[name]
    inputs = made("odd", torch.float32) | changes
    with pytest.raises(error, match=message):
        bidirectional_s4d_scan(**inputs)
    single = {n: v for n, v in inputs.items() if n in NAMES[:5]}
    if not set(changes) & {"merge", "u_b"}:
        with pytest.raises(error, match=message):
            s4d_scan(**single, **({"backend": "gpu"} if "backend" in changes else {}))


def test_bare_operators_refuse_what_they_would_read_beyond():
    tensors = real(made("odd", torch.float32))
    for changes in ({"decay": tensors.decay[:4]}, {"weight": tensors.weight[..., :1]}, {"z": tensors.z[..., :3]}):
        with pytest.raises(RuntimeError, match="must have the shape"):
            COMPILED.s4d_forward(*tensors._replace(**changes), 2, 0)
    y = COMPILED.s4d_forward(*tensors, 2, 0)
    with pytest.raises(RuntimeError, match="dy must have the shape"):
        COMPILED.s4d_backward(y, *tensors, 2, 2, 1)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameters_that_are_conjugated_lazily(backend):
    inputs = made("odd", has_z=False, has_reverse=False)
    u, decay, weight = (inputs[name] for name in ("u", "decay", "weight"))
    lazy, solid = (
        s4d_scan(u, d, w, backend=backend)
        for d, w in ((decay.conj(), weight.conj()), (decay.conj().resolve_conj(), weight.conj().resolve_conj()))
    )
    assert torch.equal(lazy, solid)
