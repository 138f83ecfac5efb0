"""The operators inside PyTorch: opcheck, compile, export, meta and fake tensors, autocast, checkpointing, vmap."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
import torch._dynamo.testing
from torch.utils.checkpoint import checkpoint

from ssmvdm_kernels import bidirectional_conv1d, bidirectional_selective_scan, ops, selective_scan
from ssmvdm_kernels.operators import Operators

from . import cases, truth
from .bounds import Expected
from .cases import Case
from .checks import assert_same_bits, call, device_of, operator_arguments, operators_of, run, run_case

EVERY_CHECK = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def by_name(case):
    return case.name


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


OPCHECKED = [
    Case(direction="forward", initial=True, last=True),
    Case(direction="reverse", dtype=torch.bfloat16, layout="length", lanes=()),
    Case(merge="cat", layout="channels", dtype=torch.float64),
    Case(merge="mean", separate="shared", B_form="groups", C_form="constant", D=False, z=False, bias=False),
    Case(direction="forward", B_form="groups", C_form="groups", layout="cropped", lanes=(3, 4), dtype=torch.float16),
    Case(length=0),
]


@pytest.mark.parametrize("case", OPCHECKED, ids=by_name)
def test_opcheck_of_the_scan(case, compiled_backend):
    opcheck_scan(case, operators_of(compiled_backend), device_of(compiled_backend))


def opcheck_scan(case: Case, operators: Operators, device: str) -> None:
    """Forward with and without gradients; backward as autograd calls it."""
    # The operator wants equal groups; a shared form beside a grouped one is brought to it by the public function.
    if case.B_form == "groups" and case.C_form == "shared":
        case = dataclasses.replace(case, C_form="groups")
    for requires_grad in (False, True):
        arguments = *operator_arguments(case, device, requires_grad), case.has_last
        torch.library.opcheck(operators.scan_forward, arguments, test_utils=EVERY_CHECK)
    dy, dlast = case.output_gradients(device)
    for needs in ((1 << len(truth.NAMES)) - 1, 0b1010_0000_0101_0011):
        arguments = dy, dlast, *operator_arguments(case, device, False), needs
        torch.library.opcheck(operators.scan_backward, arguments, test_utils=EVERY_CHECK)


@pytest.mark.parametrize("direction", [ops.FORWARD, ops.REVERSE, ops.BOTH], ids=["forward", "reverse", "both"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_opcheck_of_the_convolution(layout, direction, compiled_backend):
    opcheck_convolution(layout, direction, operators_of(compiled_backend), device_of(compiled_backend))


def opcheck_convolution(layout: str, direction: int, operators: Operators, device: str) -> None:
    """The same for the convolution."""
    x = cases.lay_out(torch.randn(2, 5, 7, 3, device=device), layout)
    separate = direction == ops.BOTH
    parameters = [
        torch.randn(5, 4),
        torch.randn(5),
        torch.randn(5, 4) if separate else None,
        torch.randn(5) if separate else None,
    ]
    parameters = [None if p is None else p.to(device) for p in parameters]
    for requires_grad in (False, True):
        tensors = [None if t is None else t.detach().requires_grad_(requires_grad) for t in (x, *parameters)]
        torch.library.opcheck(operators.conv1d_forward, (*tensors, direction, True), test_utils=EVERY_CHECK)
    nothing = x.new_empty(0)
    dys = (nothing if direction == ops.REVERSE else x, nothing if direction == ops.FORWARD else x)
    arguments = *dys, x, *parameters, direction, True, 0b11111
    torch.library.opcheck(operators.conv1d_backward, arguments, test_utils=EVERY_CHECK)


# -- layouts -----------------------------------------------------------------------------------------------------------


def dense_strides(like: torch.Tensor, shape) -> tuple[int, ...]:
    """The rule of outputs: dense, axes in memory in the order of `like`'s strides, the earlier axis outside on ties."""
    order = sorted(range(len(shape)), key=lambda axis: (-like.stride(axis), axis))
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], step = step, step * max(shape[axis], 1)
    return tuple(strides)


@pytest.mark.parametrize("case", cases.pairs(), ids=by_name)
def test_fake_and_real_outputs_have_the_promised_strides(case, compiled_backend):
    check_strides(case, operators_of(compiled_backend), device_of(compiled_backend))


def check_strides(case: Case, operators: Operators, device: str) -> None:
    """Real outputs and fake ones lie in memory as the layout rule says."""
    if "groups" in (case.B_form, case.C_form):  # expanded by the public function before the operator sees them
        case = dataclasses.replace(
            case, B_form="groups", C_form="groups", B_b_form="groups" if case.B_b_form == "shared" else None
        )
    everything = (1 << len(truth.NAMES)) - 1 | ops.NEEDS_Y
    arguments = operator_arguments(case, device, False)
    dy, dlast = case.output_gradients(device)
    real = (
        *operators.scan_forward(*arguments, case.has_last),
        *operators.scan_backward(dy, dlast, *arguments, everything),
    )
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in (*arguments, dy, dlast)]
        *arguments_, dy_, dlast_ = fakes
        fake = (
            *operators.scan_forward(*arguments_, case.has_last),
            *operators.scan_backward(dy_, dlast_, *arguments_, everything),
        )
    for name, one, other in zip(("y", "last_state", *truth.NAMES, "y again"), real, fake, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype), name
    inputs = dict(zip(truth.NAMES, arguments, strict=False))
    assert real[0].stride() == dense_strides(inputs["u"], real[0].shape)
    assert real[-1].stride() == real[0].stride()
    for name, gradient in zip(truth.NAMES, real[2:-1], strict=True):
        if inputs[name] is not None and inputs[name].dim() >= inputs["u"].dim() and name != "initial_state":
            assert gradient.stride() == dense_strides(inputs[name], gradient.shape), name
        elif inputs[name] is not None:
            assert gradient.is_contiguous(), name


def test_more_lane_axes_than_kernels_walk(compiled_backend):
    """Seven lane axes that do not merge: the kernels get a copy, and nobody sees it."""
    case = Case(channels=2, length=3, lanes=(2,) * 7, states=2, direction="forward")
    device = device_of(compiled_backend)
    inputs, (dy, dlast) = case.inputs(device), case.output_gradients(device)
    wanted = run(inputs, case, compiled_backend, dy, dlast)
    u = inputs["u"]
    wide = u.new_full((*u.shape[:3], *(size + 1 for size in u.shape[3:])), float("nan"))
    inputs["u"] = wide[(..., *[slice(1, None)] * 7)].copy_(u)
    found = run(inputs, case, compiled_backend, dy, dlast)
    assert_same_bits(found, wanted)
    assert found["y"].stride() == wanted["y"].stride()


@pytest.mark.parametrize("case", [c for c in cases.core() if c.layout in cases.LAYOUTS], ids=by_name)
def test_meta_tensors(case):
    """Shapes, dtypes and strides without memory or arithmetic, forward and backward."""
    inputs, (dy, dlast) = case.inputs(), case.output_gradients()
    real = run(inputs, case, "reference", dy, dlast)
    move = lambda x: None if x is None else x.to("meta")  # noqa: E731
    found = run({name: move(x) for name, x in inputs.items()}, case, "auto", move(dy), move(dlast))
    for name, value in found.items():
        assert value.is_meta
        assert (value.shape, value.dtype) == (real[name].shape, real[name].dtype), name


# -- compile and export ------------------------------------------------------------------------------------------------


def model_of(backend: str):
    """A function with a convolution and both scans in it, as a network would have them."""

    def model(x, delta, A, B, C, z, weight):
        forward, backward = bidirectional_conv1d(x, weight, backend=backend)
        y = bidirectional_selective_scan(
            forward, delta, A, B, C, z=z, u_b=backward, delta_softplus=True, backend=backend
        )
        out, state = selective_scan(y, delta, A, B, C, return_last_state=True, reverse=True, backend=backend)
        return out * 2, state

    return model


def model_inputs(batch: int, requires_grad: bool = True, device: str = "cpu") -> tuple:
    generator = torch.Generator().manual_seed(batch)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(device).requires_grad_(requires_grad)  # noqa: E731
    sequence = (batch, 6, 5, 3)
    A = (-torch.rand(6, 4, generator=generator) - 0.5).to(device).requires_grad_(requires_grad)
    return draw(*sequence), draw(*sequence), A, draw(batch, 4, 5, 3), draw(batch, 4, 5, 3), draw(*sequence), draw(6, 4)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_compile_without_breaks_and_with_few_recompiles(requires_grad, compiled_backend):
    """fullgraph=True raises at a graph break; ten batch sizes take at most two compilations after the first."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model, device = model_of(compiled_backend), device_of(compiled_backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch in (3, 2, 4, 5, 6, 7, 8, 9, 16, 33):
        inputs = model_inputs(batch, requires_grad, device)
        wanted, found = model(*inputs), compiled(*inputs)
        for one, other in zip(found, wanted, strict=True):
            assert_same_bits(one, other, f"batch {batch}")
        if requires_grad:
            gradients = [torch.autograd.grad(sum(o.square().sum() for o in out), inputs) for out in (found, wanted)]
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other)
    assert counter.frame_count <= 3


def test_compile_with_inductor(compiled_backend):
    """Through code generation: the results of the default backend."""
    device = device_of(compiled_backend)
    inputs = model_inputs(2, False, device)
    found = torch.compile(model_of(compiled_backend), fullgraph=True)(*inputs)
    for one, other in zip(found, model_of(compiled_backend)(*inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_export_round_trip(compiled_backend):
    """Exported with a dynamic batch, saved, loaded, and run at another batch size."""

    class Model(torch.nn.Module):
        def forward(self, *inputs):
            return model_of(compiled_backend)(*inputs)

    device = device_of(compiled_backend)
    inputs = model_inputs(3, False, device)
    batch = torch.export.Dim("batch", min=2, max=1024)
    dynamic = tuple({0: batch} if x.dim() == 4 else None for x in inputs)
    program = torch.export.export(Model(), inputs, dynamic_shapes=(dynamic,))
    assert any("ssmvdm" in str(node.target) for node in program.graph.nodes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for size in (3, 7):
        inputs = model_inputs(size, False, device)
        for one, other in zip(loaded(*inputs), model_of(compiled_backend)(*inputs), strict=True):
            assert_same_bits(one, other)


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_autocast_is_the_explicit_cast(direction, dtype, backend):
    """Sequences to the autocast dtype, parameters stay float32; gradients come back in the dtype of the inputs."""
    case = Case(direction=direction, B_form="shared", C_form="constant", initial=True, last=True)
    device = device_of(backend)
    inputs, (dy, dlast) = case.inputs(device), case.output_gradients(device)
    low = {
        name: x if x is None or name not in cases.SEQUENCES or x.dim() == 2 else x.to(dtype)
        for name, x in inputs.items()
    }
    wanted = run(low, dataclasses.replace(case, dtype=dtype), backend, dy.to(dtype), dlast)
    with torch.autocast(device, dtype):
        found = run(inputs, case, backend, dy.to(dtype), dlast)
    assert found["y"].dtype == dtype
    for name, value in found.items():
        assert name in ("y", "last_state") or value.dtype == torch.float32, name
        torch.testing.assert_close(value, wanted[name].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_bits(reentrant, backend):
    case = Case()
    device = device_of(backend)
    wanted = run_case(case, backend)
    leaves = {name: None if x is None else x.requires_grad_() for name, x in case.inputs(device).items()}
    names = case.given()

    def block(*tensors):
        return call(dict(zip(names, tensors, strict=True)), case, backend)[0]

    y = checkpoint(block, *(leaves[name] for name in names), use_reentrant=reentrant)
    y.backward(case.output_gradients(device)[0])
    for name in names:
        assert_same_bits(leaves[name].grad, wanted[name], name)


@pytest.mark.parametrize("case", cases.core()[:6], ids=by_name)
def test_inference_mode_and_no_grad(case, backend):
    wanted = run_case(case, backend)["y"]
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert_same_bits(call(case.inputs(device_of(backend)), case, backend)[0], wanted)


def test_vmap(backend):
    """Over all sequences together, and over u alone with everything else shared: each sample within its bounds."""
    case = Case(direction="forward", separate="shared")
    device = device_of(backend)
    several = [dataclasses.replace(case, seed=seed).inputs(device) for seed in range(3)]
    stacked = {name: torch.stack([x[name] for x in several]) for name in case.given()}
    mapped = torch.vmap(lambda x: call(x, case, backend)[0])(stacked)
    for y, inputs in zip(mapped, several, strict=True):
        Expected(inputs, case.options).check("y", y)
    others = {name: several[0][name] for name in case.given() if name != "u"}
    mapped = torch.vmap(lambda u: call({"u": u, **others}, case, backend)[0])(stacked["u"])
    for y, u in zip(mapped, stacked["u"], strict=True):
        Expected({**others, "u": u}, case.options).check("y", y)


def test_double_backward_is_refused_in_words(compiled_backend):
    case = Case()
    leaves = {n: None if x is None else x.requires_grad_() for n, x in case.inputs(device_of(compiled_backend)).items()}
    y, _ = call(leaves, case, compiled_backend)
    (du,) = torch.autograd.grad(y.square().sum(), leaves["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        du.sum().backward()


def test_the_graph_is_freed_after_backward(compiled_backend):
    """A second backward through the same graph is an error, not a wrong gradient."""
    case = Case()
    leaves = {n: None if x is None else x.requires_grad_() for n, x in case.inputs(device_of(compiled_backend)).items()}
    y = call(leaves, case, compiled_backend)[0].sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("name", ["u", "C", "A"])
def test_inputs_changed_before_backward_are_an_error(name, compiled_backend):
    case = Case()
    leaves = {n: None if x is None else x.requires_grad_() for n, x in case.inputs(device_of(compiled_backend)).items()}
    y = call(leaves, case, compiled_backend)[0].sum()
    with torch.no_grad():
        leaves[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
