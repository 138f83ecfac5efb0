"""The specification itself: closed forms, identities between its options, first and second derivatives."""

import pytest
import torch
import torch.nn.functional as F

from ssmvdm_kernels import bidirectional_conv1d, bidirectional_selective_scan, selective_scan

from .cases import Case

REFERENCE = {"backend": "reference"}


def arguments(**options):
    """Keyword arguments of one call on float64 tensors, unless the options say otherwise."""
    case = Case(**{"dtype": torch.float64, "length": 5, **options})
    return {name: tensor for name, tensor in case.inputs().items() if tensor is not None}


def flipped(named, dim=2):
    """The same call with every sequence reversed in time."""
    sequences = ("u", "delta", "z", "B", "C")
    return {name: tensor.flip(dim) if name in sequences else tensor for name, tensor in named.items()}


def test_two_steps_by_hand():
    u, delta = torch.tensor([[[2.0, 3.0]]]), torch.tensor([[[0.5, 1.0]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[1.0, 4.0]]]), torch.tensor([[[3.0, 0.5]]])
    first, second = 0.5 * 2 * 1, torch.exp(torch.tensor(-1.0)) * 1.0 + 1.0 * 3 * 4
    y, last = selective_scan(u, delta, A, B, C, D=torch.tensor([10.0]), return_last_state=True, **REFERENCE)
    torch.testing.assert_close(y, torch.stack([torch.tensor(3 * first + 20), 0.5 * second + 30]).view(1, 1, 2))
    torch.testing.assert_close(last, second.view(1, 1, 1))


def test_no_decay_is_a_cumulative_sum_of_integers_exactly():
    u = torch.arange(1.0, 13.0).view(1, 2, 6)
    ones = torch.ones(1, 1, 6)
    call = (u, torch.ones_like(u), torch.zeros(2, 1), ones, ones)
    assert torch.equal(selective_scan(*call, **REFERENCE), u.cumsum(2))
    assert torch.equal(selective_scan(*call, reverse=True, **REFERENCE), u.flip(2).cumsum(2).flip(2))


@pytest.mark.parametrize("lanes", [(), (3,), (2, 2)])
def test_reverse_is_the_flipped_scan_of_the_flipped_sequences(lanes):
    named = arguments(direction="forward", lanes=lanes, initial=True)
    there, last = selective_scan(**named, delta_softplus=True, return_last_state=True, reverse=True, **REFERENCE)
    back, last_flipped = selective_scan(**flipped(named), delta_softplus=True, return_last_state=True, **REFERENCE)
    torch.testing.assert_close((there, last), (back.flip(2), last_flipped))


def test_initial_state_continues_a_sequence():
    named = arguments(direction="forward", length=7)
    whole, last = selective_scan(**named, return_last_state=True, **REFERENCE)

    def part(start, stop):
        return {n: t.narrow(2, start, stop - start) if t.dim() > 2 else t for n, t in named.items()}

    head, state = selective_scan(**part(0, 3), return_last_state=True, **REFERENCE)
    tail, end = selective_scan(**part(3, 7), return_last_state=True, initial_state=state, **REFERENCE)
    torch.testing.assert_close((torch.cat((head, tail), 2), end), (whole, last))


def test_groups_serve_neighbouring_channels():
    named = arguments(direction="forward", B_form="groups", C_form="groups", channels=6)
    y = selective_scan(**named, **REFERENCE)
    for group, channels in enumerate((slice(0, 3), slice(3, 6))):
        own = {n: named[n][:, channels] for n in ("u", "delta", "z")}
        own |= {n: named[n][channels] for n in ("A", "D", "delta_bias")} | {n: named[n][:, group] for n in "BC"}
        torch.testing.assert_close(selective_scan(**own, **REFERENCE), y[:, channels])


def test_constant_modulation_is_one_group_per_channel_repeated_in_time():
    named = arguments(direction="forward", B_form="constant", C_form="constant")
    batch, _, length, *lanes = named["u"].shape
    varying = dict(named)
    for name in "BC":
        constant = named[name].reshape(1, *named[name].shape, *(1 for _ in (length, *lanes)))
        varying[name] = constant.expand(batch, -1, -1, length, *lanes)
    torch.testing.assert_close(selective_scan(**named, **REFERENCE), selective_scan(**varying, **REFERENCE))


def test_merges_are_made_of_the_two_directions():
    named = arguments(separate="all")
    ahead = {n: t for n, t in named.items() if not n.endswith("_b")}
    back = ahead | {n.removesuffix("_b"): t for n, t in named.items() if n.endswith("_b")}
    y_f, y_b = selective_scan(**ahead, **REFERENCE), selective_scan(**back, reverse=True, **REFERENCE)

    def merged(merge):
        return bidirectional_selective_scan(**named, merge=merge, **REFERENCE)

    assert torch.equal(merged("cat"), torch.cat((y_f, y_b), 1))
    assert all(torch.equal(half, y) for half, y in zip(merged("none"), (y_f, y_b), strict=True))
    torch.testing.assert_close(merged("sum"), y_f + y_b)
    torch.testing.assert_close(merged("mean"), (y_f + y_b) / 2)


def test_what_is_not_given_is_shared_with_the_forward_direction():
    named = arguments(separate="shared")
    spelt = {f"{n}_b": named[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")}
    implied = bidirectional_selective_scan(**named, **REFERENCE)
    assert torch.equal(implied, bidirectional_selective_scan(**named, **spelt, **REFERENCE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_widened_and_rounded_once(dtype):
    named = arguments(dtype=dtype)
    wide = {n: t.float() for n, t in named.items()}
    y = bidirectional_selective_scan(**named, delta_softplus=True, **REFERENCE)
    assert y.dtype == dtype
    assert torch.equal(y, bidirectional_selective_scan(**wide, delta_softplus=True, **REFERENCE).to(dtype))


def test_softplus_is_exact_above_twenty():
    delta = torch.tensor([[[21.0, 25.0, 30.0]]], dtype=torch.float64)
    ones = torch.ones_like(delta)
    A = torch.zeros(1, 1, dtype=torch.float64)
    y = selective_scan(ones, delta, A, ones, ones, delta_softplus=True, **REFERENCE)
    assert torch.equal(y, (delta + torch.log1p(torch.exp(-delta))).cumsum(2))


def test_nothing_reaches_back_in_time():
    named = arguments(direction="forward")
    named["u"] = named["u"].clone()
    named["u"][:, 1, 3] = float("nan")
    y = selective_scan(**named, **REFERENCE)
    assert y[:, 1, 3:].isnan().all()
    assert not y[:, 1, :3].isnan().any() and not y[:, 0].isnan().any()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("form", ["shared", "groups", "constant"])
def test_both_derivatives_of_one_direction(direction, form):
    case = {"batch": 1, "channels": 2, "length": 3, "lanes": (2,), "states": 2, "initial": True}
    named = arguments(direction=direction, B_form=form, C_form=form, **case)

    def call(*tensors):
        options = {"delta_softplus": True, "return_last_state": True, "reverse": direction == "reverse"}
        return selective_scan(**dict(zip(named, tensors, strict=True)), **options, **REFERENCE)

    leaves = [tensor.clone().requires_grad_() for tensor in named.values()]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("merge", ["sum", "mean", "cat", "none"])
def test_both_derivatives_of_both_directions(merge):
    named = arguments(batch=1, channels=2, length=3, lanes=(), states=2, separate="all")

    def call(*tensors):
        named_tensors = dict(zip(named, tensors, strict=True))
        return bidirectional_selective_scan(**named_tensors, delta_softplus=True, merge=merge, **REFERENCE)

    leaves = [tensor.clone().requires_grad_() for tensor in named.values()]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("width", [1, 2, 4, 9])
@pytest.mark.parametrize("activation", ["silu", None])
def test_convolution_is_torchs_own_on_flipped_time(width, activation):
    generator = torch.Generator().manual_seed(width)
    x, weight, bias, weight_b, bias_b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 5), (3, width), (3,), (3, width), (3,))
    )

    def causal(x, weight, bias):
        y = F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=3)
        return F.silu(y) if activation else y

    separate = {"weight_b": weight_b, "bias_b": bias_b}
    y, y_b = bidirectional_conv1d(x, weight, bias, **separate, activation=activation, **REFERENCE)
    torch.testing.assert_close(y, causal(x, weight, bias))
    torch.testing.assert_close(y_b, causal(x.flip(2), weight_b, bias_b).flip(2))
    shared = bidirectional_conv1d(x, weight, bias, activation=activation, **REFERENCE)[1]
    torch.testing.assert_close(shared, causal(x.flip(2), weight, bias).flip(2))


def test_both_derivatives_of_the_convolution():
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 4, 2), (2, 3), (2,), (2, 3), (2,))
    leaves = [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]

    def call(x, weight, bias, weight_b, bias_b):
        return bidirectional_conv1d(x, weight, bias, weight_b=weight_b, bias_b=bias_b, **REFERENCE)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)
