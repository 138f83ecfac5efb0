"""The selective scan in the interpreter, against the truth and the bounds of the other backends."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

from ssmvdm_kernels import ops
from ssmvdm_kernels.triton_kernels import layout as kernel_layout
from ssmvdm_kernels.triton_kernels import scan_backward, scan_forward
from tests.kernels import cases
from tests.kernels.cases import Case
from tests.kernels.checks import assert_same_bits, check_case, operators_of, run, run_case
from tests.kernels.test_memory_safety import fenced
from tests.kernels.test_torch import EVERY_CHECK, operator_arguments


def by_name(case: Case) -> str:
    return case.name


def steps(case: Case) -> int:
    """What the interpreter's time grows with."""
    lanes = 1
    for size in case.lanes:
        lanes *= size
    return case.batch * case.length * -(-case.states // 16) * -(-case.channels // 32) * -(-lanes // 32)


PAIRS = [case for case in cases.pairs() if case.dtype != torch.float64]
QUICK = [case for case in PAIRS if steps(case) <= 8][::4]


@pytest.mark.parametrize("case", QUICK, ids=by_name)
def test_pairs_of_options(case):
    check_case(case, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in PAIRS if case not in QUICK], ids=by_name)
def test_every_pair_of_options(case):
    check_case(case, "triton")


@pytest.mark.parametrize("direction", ["reverse", "both"])
@pytest.mark.parametrize("form", ["shared", "groups", "constant"])
def test_tiles_of_gpus(form, direction, gpu_tiles):
    """Several tiles, slices and launches: 19 states, more lanes than a tile has, a ragged length."""
    case = Case(
        direction=direction, B_form=form, C_form=form, states=19, channels=4, batch=1, length=5, initial=True,
        last=True, lanes=(6,) if gpu_tiles == "lanes" else (2,),
    )  # fmt: skip
    check_case(case, "triton")


def test_more_channels_than_a_tile_has(many_channels):
    check_case(Case(channels=many_channels, batch=1, lanes=(2,), length=2, states=2, merge="cat"), "triton")


@pytest.mark.parametrize("values", ["strong", "growing"])
def test_regimes(values):
    check_case(Case(values=values, length=16, channels=4, batch=1), "triton")


@pytest.mark.parametrize("length", [3, 8])
def test_layouts_give_the_same_bits(length):
    """Memory layouts without a copy, and those with one, differ in nothing that is not a sum over sequences; nor do
    lengths whose steps are unrolled where time is the inner axis."""
    case = Case(length=length, channels=3, batch=1, lanes=(2, 3), states=3)
    wanted = run_case(case, "triton")
    for layout in ("length", "channels", "narrowed", "cropped", "odd-strides"):
        assert_same_bits(run_case(dataclasses.replace(case, layout=layout), "triton"), wanted, layout)


def test_the_same_bits_from_run_to_run():
    case = Case(length=3, states=2, channels=3, batch=1)
    assert_same_bits(run_case(case, "triton"), run_case(case, "triton"))


class Sums(TorchDispatchMode):
    """Counts the sums of PyTorch, and those over memory that nobody has written."""

    count = over_poison = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.sum:
            self.count += 1
            self.over_poison += bool(args[0].isnan().any())
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("states", [1, 2, 3, 19])
def test_only_what_was_written_is_summed(states):
    """Memory has room for four states where there are fewer, and for whole launches where there are more."""
    case = Case(states=states, length=2, channels=3, batch=1, lanes=(2,))
    arguments, dy = operator_arguments(case, "cpu", False), case.output_gradients()[0]
    with Sums() as sums:
        scan_backward.scan_backward(dy, None, *arguments, ops.NEEDS_Y - 1)
    assert sums.count and not sums.over_poison


@pytest.mark.parametrize("neighbour", [float("nan"), 1234.5], ids=str)
def test_memory_beside_tensors_is_neither_used_nor_written(neighbour, gpu_tiles):
    lanes = (5,) if gpu_tiles == "lanes" else (2,)
    case = Case(direction="forward", channels=3, lanes=lanes, states=3, length=3, batch=1, initial=True, last=True)
    wanted = run_case(case, "triton")
    buffers, inputs = {}, {}
    for name, x in (*case.inputs().items(), *zip(("dy", "dlast"), case.output_gradients(), strict=True)):
        inputs[name] = None
        if x is not None:
            buffers[name], inputs[name] = fenced(x)
            values = inputs[name].clone()
            buffers[name].fill_(neighbour)
            inputs[name].copy_(values)
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    dy, dlast = inputs.pop("dy"), inputs.pop("dlast")
    assert_same_bits(run(inputs, case, "triton", dy, dlast), wanted)
    assert_same_bits(buffers, before)


def test_a_nan_touches_what_comes_after_it():
    case = Case(direction="forward", channels=3, lanes=(2,), length=6, batch=1, states=3)
    inputs = case.inputs()
    inputs["u"] = inputs["u"].clone()
    inputs["u"][0, 1, 3, 1] = torch.nan
    found = run(inputs, case, "triton", *case.output_gradients())
    touched = torch.zeros(found["y"].shape, dtype=torch.bool)
    touched[0, 1, 3:, 1] = True
    assert torch.equal(found["y"].isnan(), touched)
    assert not found["A"][[0, 2]].isnan().any() and found["A"][1].isnan().all()


EMPTY = [{"batch": 0}, {"channels": 0}, {"length": 0}, {"lanes": (3, 0)}, {"states": 0}]


@pytest.mark.parametrize("what", EMPTY, ids=str)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_size_zero(what, direction):
    case = Case(**{"direction": direction, "length": 2, "initial": True, "last": True} | what)
    found = run_case(case, "triton")
    if "states" in what:
        check_case(case, "triton")
        return
    for name, x in case.inputs().items():
        if x is not None:
            wanted = case.output_gradients()[1] if (name, "length" in what) == ("initial_state", True) else 0 * x
            assert_same_bits(found[name], wanted, name)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("form", ["shared", "groups"])
def test_tensors_are_read_where_they_lie(form, layout, monkeypatch):
    """Kernels get the caller's own memory in the three layouts of real tensors. Parameters may be copied."""
    case = Case(B_form=form, C_form=form, channels=4, length=3, batch=1, lanes=(2, 3), states=3, layout=layout)
    operators, arguments = operators_of("triton"), operator_arguments(case, "cpu", False)
    dy, read = case.output_gradients()[0], set()
    for module in (scan_forward, scan_backward):
        monkeypatch.setattr(module, "run", lambda *launch, **options: read.update(tensors_in(launch)))
    operators.scan_forward(*arguments, False)
    sequences = {x.data_ptr() for x in arguments if isinstance(x, torch.Tensor) and x.dim() > 2}
    assert sequences <= read
    read.clear()
    operators.scan_backward(dy, None, *arguments, 0b11)
    assert sequences | {dy.data_ptr()} <= read


def tensors_in(arguments) -> set[int]:
    """Where the tensors of a launch begin."""
    if isinstance(arguments, torch.Tensor):
        return {arguments.data_ptr()}
    return set().union(*map(tensors_in, arguments)) if isinstance(arguments, tuple) else set()


@pytest.mark.parametrize("direction", ["reverse", "both"])
def test_64_bits_for_every_offset(direction, monkeypatch):
    """They change nothing where 32 are enough."""
    case = Case(direction=direction, channels=3, length=3, batch=2, states=3, initial=True, last=True)
    wanted = run_case(case, "triton")
    for module in (kernel_layout, scan_backward):
        monkeypatch.setattr(module, "is_far", lambda *tensor: tl.constexpr(True))
    assert_same_bits(run_case(case, "triton"), wanted)


@pytest.mark.parametrize(
    ("name", "axis"), [*(("u", axis) for axis in range(4)), *(("B", axis) for axis in range(4)), ("dy", 2)]
)
def test_offsets_beyond_32_bits(name, axis):
    """One tensor whose end along one axis lies beyond 2^31 elements: the system gives memory only to pages in use."""
    case = Case(dtype=torch.float16, batch=2, channels=2, length=2, lanes=(2,), states=2, separate="shared")
    inputs, (dy, _) = case.inputs(), case.output_gradients()
    wanted = run(inputs, case, "triton", dy)
    inputs["dy"] = dy
    dense = inputs[name]
    stride = 2**31 + 24
    torch.use_deterministic_algorithms(False)  # which would write to all of it
    far = torch.empty(stride + 64, dtype=torch.float16)
    torch.use_deterministic_algorithms(True)
    strides = [stride if dim == axis else step for dim, step in enumerate(dense.stride())]
    inputs[name] = far.as_strided(dense.shape, strides)
    inputs[name].copy_(dense)
    dy = inputs.pop("dy")
    found = run(inputs, case, "triton", dy)
    assert_same_bits(found, wanted)


@pytest.mark.parametrize("merge", ["sum", "cat"])
def test_backward_can_return_the_output(merge):
    case = Case(length=5, channels=3, batch=1, lanes=(2,), states=3, merge=merge)
    operators, arguments = operators_of("triton"), operator_arguments(case, "cpu", False)
    dy = case.output_gradients()[0]
    y, _ = operators.scan_forward(*arguments, False)
    assert_same_bits(operators.scan_backward(dy, None, *arguments, ops.NEEDS_Y)[-1], y)


def test_only_wanted_gradients_are_computed():
    case = Case(length=3, channels=3, batch=1, lanes=(2,), states=3)
    operators, arguments = operators_of("triton"), operator_arguments(case, "cpu", False)
    dy = case.output_gradients()[0]
    everything = operators.scan_backward(dy, None, *arguments, (1 << len(ops.ScanTensors._fields)) - 1)
    for index in (0, 3, 6, 8):
        found = operators.scan_backward(dy, None, *arguments, 1 << index)
        assert_same_bits(found[index], everything[index])
        assert all(g.numel() == 0 for k, g in enumerate(found) if k != index)


def test_opcheck():
    case = Case(length=2, channels=2, batch=1, lanes=(2,), states=2)
    operators = operators_of("triton")
    arguments = *operator_arguments(case, "cpu", True), False
    torch.library.opcheck(operators.scan_forward, arguments, test_utils=EVERY_CHECK)
    arguments = case.output_gradients()[0], None, *operator_arguments(case, "cpu", False), 0b1010_0000_0101_0011
    torch.library.opcheck(operators.scan_backward, arguments, test_utils=EVERY_CHECK)


def test_wrong_tensors_are_named():
    case = Case(length=2, channels=2, batch=1, lanes=(2,), states=2)
    operators, arguments = operators_of("triton"), list(operator_arguments(case, "cpu", False))
    for index, (spoil, error, words) in {
        1: (lambda x: x[:, :1], ValueError, "delta must have the shape"),
        2: (lambda x: x.double(), TypeError, "A must be torch.float32"),
        15: (lambda x: torch.zeros(1, 2, 2, 2), ValueError, "initial_state needs a single direction"),
    }.items():
        wrong = [*arguments]
        wrong[index] = spoil(wrong[index])
        with pytest.raises(error, match=words):
            operators.scan_forward(*wrong, False)
