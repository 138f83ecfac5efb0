"""The operators of the CUDA library over emulated kernels: its binding, and the public functions on top of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings

from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig
from ssmvdm_kernels import backends, causal_conv1d, check, explain, selective_scan
from ssmvdm_kernels.backends.cuda import CudaBackend
from ssmvdm_kernels.ops import BOTH, FORWARD, NEEDS_Y, REVERSE
from tests.gpu import large, test_large
from tests.kernels import cases, test_conv, test_gradients, test_s4d, test_torch, truth
from tests.kernels.bounds import usage
from tests.kernels.cases import Case
from tests.kernels.checks import assert_same_bits, call, expected, operator_arguments, run
from tests.kernels.drawn import scans
from tests.kernels.test_module import made, outcome, video

from . import emulated
from .calls import Machine
from .edges import needs_emulator
from .suite import STORAGE, of_storage

pytestmark = needs_emulator

EVERYTHING = (1 << len(truth.NAMES)) - 1
EXACT = Machine(exact=True)


def by_name(case):
    return case.name


@pytest.fixture(scope="module")
def operators():
    with emulated.as_cuda() as found:
        yield found


@pytest.fixture(autouse=True)
def _same_machine_for_every_test(operators):
    emulated.configure(EXACT)
    yield
    torch._dynamo.reset()


def run_emulated(case: Case) -> dict[str, torch.Tensor]:
    return run(case.inputs(), case, "cuda", *case.output_gradients())


# -- the public functions ----------------------------------------------------------------------------------------------

# Also memory layouts that no kernel was made for: copies of lanes are among them.
SCANS = list(dict.fromkeys(of_storage((*cases.core(), *cases.triples()))))
SCANS += [case for case in cases.layouts() if case.channels == 6]


@pytest.mark.parametrize("case", SCANS, ids=by_name)
def test_scan_within_its_bounds(case):
    check_emulated(case)


@settings(max_examples=50)
@given(scans(STORAGE, work=4000))
def test_any_scan_is_within_its_bounds(case):
    check_emulated(case)


def check_emulated(case: Case) -> None:
    """Both bounds, with exact functions and with functions that are as wrong as they may be."""
    for machine in (EXACT, Machine()):
        emulated.configure(machine)
        for name, value in run_emulated(case).items():
            expected(case).check(name, value, is_exact=machine.exact)


@pytest.mark.parametrize("merge", ["forward", "reverse", *test_s4d.MERGES])
@pytest.mark.parametrize("layout", test_s4d.LAYOUTS)
def test_s4d_within_its_bounds(layout, merge):
    for shape, dtype, has_z in (("odd", torch.float32, True), ("recurrence", torch.float32, False),
                                ("lanes", torch.bfloat16, True)):  # fmt: skip
        test_s4d.check(test_s4d.made(shape, dtype, layout, has_z), merge, "cuda")


@pytest.mark.parametrize("layout", (*cases.LAYOUTS, "cropped", "batch-inner"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolution_within_its_bounds(dtype, layout):
    shape = (2, 5, 7, 3, 2)
    for separate, has_bias, activation in ((True, True, "silu"), (False, True, None), (True, False, "silu")):
        inputs = test_conv.tensors(shape, 4, dtype, layout, separate, has_bias, "cpu")
        dys = tuple(cases.lay_out(torch.randn(shape).to(dtype), layout) for _ in range(2))
        allowed = test_conv.bounded(inputs, dys, activation)
        for name, value in test_conv.run_conv(inputs, dys, activation, "cuda").items():
            assert usage(value, allowed[name], value.dtype).max() <= 1, name


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_dA_per_state_at_strong_decay(layout, direction):
    """Where the bounds of a whole row are too wide for what is lost of one state."""
    test_gradients.test_dA_per_state_at_strong_decay(layout, direction, "cuda")


def test_filters_in_the_dtype_of_x_are_widened_and_their_gradients_narrowed():
    x = torch.randn(2, 3, 5, 4).bfloat16().requires_grad_()
    low = torch.randn(3, 4).bfloat16().requires_grad_()
    wide = low.detach().float().requires_grad_()
    results = [(y, *torch.autograd.grad(y.sum(), (x, w))) for w in (low, wide) for y in [causal_conv1d(x, w)]]
    (y, dx, dlow), (y_wide, dx_wide, dwide) = results
    assert_same_bits({"y": y, "dx": dx, "dlow": dlow}, {"y": y_wide, "dx": dx_wide, "dlow": dwide.bfloat16()})


@pytest.mark.parametrize("backend", ["cuda", "auto"])
def test_it_is_the_emulated_kernels_that_run(backend):
    case, before = Case(), emulated.launches()
    call(case.inputs(), case, backend)
    assert emulated.launches() > before
    assert f"backend='{backend}' takes cuda" in explain(torch.zeros(1, 2, 3), backend=backend)


SAME = [Case(), Case(layout="channels", channels=70, direction="forward", initial=True, last=True),
        Case(layout="length", lanes=(), length=33, merge="cat", dtype=torch.bfloat16)]  # fmt: skip


@pytest.mark.parametrize("case", SAME, ids=by_name)
def test_same_bits_on_any_machine_in_any_order_and_from_any_memory(case):
    wanted = run_emulated(case)
    for machine in (Machine(order="reverse", exact=True), Machine(order="random", seed=7, exact=True)):
        emulated.configure(machine)
        assert_same_bits(run_emulated(case), wanted, str(machine))
    torch.use_deterministic_algorithms(True)  # memory is allocated full of NaN, workspaces of 255
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert_same_bits(run_emulated(case), wanted, "poisoned memory")


def test_many_sequences_have_the_bits_of_the_few():
    """The video shape of the GPU's own tests, on as many multiprocessors and with fewer channels and time steps."""
    emulated.configure(Machine(multiprocessors=132, exact=True))
    few = dataclasses.replace(test_large.VIDEO, channels=8, length=1)
    large.check(large.Large(few, 2), "cuda", "cpu")


def permuted(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same values with the axes in memory in this order, outermost first."""
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.dim())])


@pytest.mark.parametrize("order", [(0, 1, 2, 4, 3), (0, 2, 4, 3, 1), (4, 1, 0, 2, 3), (3, 0, 1, 4, 2)], ids=str)
def test_lanes_that_do_not_merge(order):
    """What the kernels get is a copy; outputs and gradients still lie in the order of their inputs."""
    case = Case(lanes=(3, 5), B_form="groups", C_form="groups", direction="forward", initial=True, last=True)
    inputs, (dy, dlast) = case.inputs(), case.output_gradients()
    grouped = [axis + (axis > 0) for axis in order]
    grouped.insert(grouped.index(0) + 1, 1)
    sequences = {"u": order, "delta": order, "z": order, "B": tuple(grouped), "C": tuple(grouped)}
    for name, axes in sequences.items():
        inputs[name] = permuted(inputs[name], axes)
    for name, value in run(inputs, case, "cuda", permuted(dy, order), dlast).items():
        expected(case).check(name, value)
        if name in sequences or name == "y":
            assert value.stride() == inputs["u" if name == "y" else name].stride(), name


def test_rows_that_span_more_than_kernels_can_count():
    """Two time steps 2^31 elements apart, of which memory holds two pages: the kernels get a copy."""
    case = Case(batch=1, channels=2, length=2, states=3, lanes=(3,), dtype=torch.bfloat16)
    inputs = case.inputs()
    plain = inputs["u"]
    far = torch.empty(2**31 + 64, dtype=plain.dtype).as_strided(plain.shape, (6, 3, 2**31, 1))
    far.copy_(plain)
    near, apart = (run(inputs | {"u": u}, case, "cuda", *case.output_gradients()) for u in (plain, far))
    assert_same_bits(near, apart)


def test_the_installed_check_passes():
    """`python -m ssmvdm_kernels.check` as a machine with a GPU runs it: its allowance holds for approximations too."""
    emulated.configure(Machine())
    dtypes = check.storage_types("cuda", "cpu")
    assert dtypes == ["float32", "bfloat16", "float16"]
    rows = list(check.check_backend("cuda", "cpu", dtypes))
    assert [row for row in rows if not row.has_passed] == []


# -- the operators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in test_torch.OPCHECKED if c.dtype != torch.float64], ids=by_name)
def test_opcheck_of_the_scan(case, operators):
    test_torch.opcheck_scan(case, operators, "cpu")


@pytest.mark.parametrize("direction", [FORWARD, REVERSE, BOTH], ids=["forward", "reverse", "both"])
@pytest.mark.parametrize("layout", (*cases.LAYOUTS, "cropped"))
def test_opcheck_of_the_convolution(layout, direction, operators):
    test_torch.opcheck_convolution(layout, direction, operators, "cpu")


def test_opcheck_of_s4d(operators):
    test_s4d.opcheck(operators)


@pytest.mark.parametrize("case", [c for c in cases.pairs() if c.dtype != torch.float64], ids=by_name)
def test_fake_and_real_outputs_have_the_promised_strides(case, operators):
    test_torch.check_strides(case, operators, "cpu")


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_one_bit_of_needs_gives_one_gradient(direction, layout, operators):
    case = Case(layout=layout, direction=direction, initial=True, last=True)
    (dy, dlast), arguments = case.output_gradients(), operator_arguments(case, "cpu", False)
    everything = operators.scan_backward(dy, dlast, *arguments, EVERYTHING | NEEDS_Y)
    for index, name in enumerate((*truth.NAMES, "y")):
        found = operators.scan_backward(dy, dlast, *arguments, 1 << index)
        assert [i for i, x in enumerate(found) if x.shape != (0,)] == ([index] if everything[index].numel() else [])
        assert_same_bits(found[index], everything[index], name)
    assert_same_bits(everything[-1], operators.scan_forward(*arguments, False)[0], "y of the forward pass")


@pytest.mark.parametrize("empty", ["batch", "channels", "lanes"])
def test_nothing_is_launched_for_empty_calls(empty):
    case = Case(**{empty: (0,) if empty == "lanes" else 0})
    before = emulated.launches()
    for name, value in run_emulated(case).items():
        assert (value == 0).all(), name
    assert emulated.launches() == before


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_no_time_steps(direction):
    case = Case(length=0, direction=direction, initial=True, last=True)
    found = run_emulated(case)
    if direction == "forward":
        assert_same_bits(found["last_state"], case.inputs()["initial_state"])
        assert_same_bits(found["initial_state"], case.output_gradients()[1])
    for name in ("A", "D", "delta_bias"):
        assert (found[name] == 0).all(), name


def test_what_the_kernels_cannot_take_is_refused_in_words(operators):
    case = Case(direction="forward", dtype=torch.float64)
    with pytest.raises(ValueError, match="backend='cuda' cannot take this call"):
        call(case.inputs(), case, "cuda")
    with pytest.raises(
        RuntimeError, match="scan_forward: u must be float32, bfloat16 or float16 on cpu, but is float64"
    ):
        operators.scan_forward(*operator_arguments(case, "cpu", False), False)
    arguments = operator_arguments(Case(direction="forward"), "cpu", False)
    with pytest.raises(RuntimeError, match=r"delta must have the shape \(2, 6, 7, 3\), but has \(2, 6, 7, 1\)"):
        operators.scan_forward(arguments[0], arguments[1][..., :1], *arguments[2:], False)


def test_a_failing_launch_names_the_operator_and_the_shapes():
    """A block wants more shared memory than the device, whose limits were read before, turns out to have."""
    case = Case(layout="channels", channels=224, length=16, states=16)
    inputs = case.inputs()
    call(inputs, case, "cuda")
    emulated.configure(Machine(shared_bytes=0))
    with pytest.raises(RuntimeError, match=r"scan_forward: .*cannot be launched for Float, u \(2, 224, 16, 3\), delta"):
        call(inputs, case, "cuda")


# -- on top of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_compile_without_breaks(requires_grad):
    model = test_torch.model_of("cuda")
    inputs = test_torch.model_inputs(3, requires_grad)
    found, wanted = torch.compile(model, backend="aot_eager", fullgraph=True)(*inputs), model(*inputs)
    for one, other in zip(found, wanted, strict=True):
        assert_same_bits(one, other)


def test_vmap():
    case = Case(B_form="shared", C_form="shared", z=False, direction="forward")
    inputs = {name: x for name, x in case.inputs().items() if x is not None}
    names = ("u", "delta", "B", "C")

    def scan(*values):
        return selective_scan(**inputs | dict(zip(names, values, strict=True)), backend="cuda")

    stacks = [torch.stack([inputs[name], inputs[name].flip(0)]) for name in names]
    assert_same_bits(torch.vmap(scan)(*stacks), torch.stack([scan(*values) for values in zip(*stacks, strict=True)]))


@pytest.mark.parametrize("shape", [(1, 6, 9, 4), (2, 6, 5, 3, 2), (3, 6, 5)])
@pytest.mark.parametrize("directions", [1, 2])
def test_lean_and_fast_mixers_agree_bit_for_bit(shape, directions):
    before = emulated.launches()
    lean, fast = (outcome(made(6, memory=memory, directions=directions), video(shape)) for memory in ("lean", "fast"))
    assert all(torch.equal(got, wanted) for got, wanted in zip(lean, fast, strict=True))
    assert emulated.launches() > before


def learned(model: UNet3D, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the gradient of all parameters, as one vector each."""
    y = model(x, torch.arange(len(x)))
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    gradients = torch.autograd.grad((y * weights).sum(), list(model.parameters()))
    return y.detach().flatten(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("layer", ["bi-s6", "bi-s4d"])
def test_a_network_learns_as_accurately_as_on_the_cpu_kernels(layer, monkeypatch):
    """A float32 training step errs at most twice as much as with the C++ kernels; those in float64 are the truth."""
    temporal = TemporalConfig(layer=layer)
    model = UNet3D(UNet3DConfig(base_channels=8, channel_mults=(1, 2), spatial_dim_head=8, temporal=temporal))
    x, before = torch.randn(2, 3, 5, 8, 8), emulated.launches()
    found = learned(model, x)
    assert emulated.launches() > before
    monkeypatch.setitem(backends.REGISTRY, "cuda", CudaBackend())
    cpu, exact = learned(model, x), learned(model.double(), x.double())
    for name, ours, theirs, wanted in zip(("output", "gradient"), found, cpu, exact, strict=True):
        assert (ours - wanted).norm() <= 2 * (theirs - wanted).norm(), name
