"""Tests of the tests: the truth by three derivations, the bounds on honest and spoilt runs, the cases themselves."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from . import cases, truth
from .bounds import Expected, usage
from .cases import Case
from .checks import assert_same_bits
from .faults import FAULTS, honest
from .rounding import EXP, LOG1P, UNIT, Rounded

F64 = torch.float64
SMALL = [
    Case(dtype=F64, batch=1, channels=2, length=3, lanes=(), states=2, separate="shared"),
    Case(dtype=F64, batch=1, channels=2, length=2, lanes=(2,), states=1, merge="mean", separate="all"),
    Case(dtype=F64, batch=1, channels=2, length=2, lanes=(), states=2, merge="cat", B_form="groups", C_form="constant"),
    Case(dtype=F64, batch=2, channels=2, length=3, lanes=(), states=1, direction="forward", initial=True, last=True),
    Case(dtype=F64, batch=1, channels=2, length=3, lanes=(2,), states=2, direction="reverse", initial=True, last=True),
    Case(dtype=F64, batch=1, channels=2, length=3, lanes=(), states=2, softplus=False, bias=False, z=False, D=False),
    Case(dtype=F64, batch=2, channels=2, length=2, lanes=(), states=2, B_form="constant", B_b_form="shared", z=False),
]


def by_name(case):
    return case.name


def leaves_of(case: Case) -> dict:
    return {name: None if x is None else x.requires_grad_() for name, x in case.inputs().items()}


# -- the truth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_truth_passes_gradcheck(case):
    tensors = leaves_of(case).values()
    assert torch.autograd.gradcheck(lambda *x: truth.TruthScan.apply(case.options, *x), tuple(tensors))


@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_truth_passes_gradgradcheck(case):
    case = dataclasses.replace(case, batch=1, length=2)
    tensors = leaves_of(case).values()
    assert torch.autograd.gradgradcheck(lambda *x: truth.TruthScan.apply(case.options, *x), tuple(tensors))


@pytest.mark.parametrize("form", [truth.scan, truth.dense_scan], ids=["loop", "dense"])
@pytest.mark.parametrize("case", cases.pairs(), ids=by_name)
def test_loop_adjoint_and_dense_form_agree(case, form):
    """Three derivations, each with the a priori bound of float64: outputs and autograd's gradients."""
    case = dataclasses.replace(case, dtype=F64)
    leaves = leaves_of(case)
    dy, dlast = case.output_gradients()
    expected = Expected(leaves, case.options, dy, dlast)
    y, last = form(leaves, case.options)
    names = case.given()
    outputs, grads = ([y, last], [dy, dlast]) if case.has_last else ([y], [dy])
    found = dict(zip(names, torch.autograd.grad(outputs, [leaves[name] for name in names], grads), strict=True))
    found |= {"y": y, "last_state": last}
    for name, value in found.items():
        number = expected.numbers[name]
        if form is truth.dense_scan:
            # Exponents are differences of sums over up to `length` steps, and what reaches early steps cancels what
            # reaches late ones: the errors are those of the largest element, `length` times.
            largest = number.error.max() * case.length
            number = dataclasses.replace(number, error=largest.expand_as(number.error))
        used = usage(value, number, F64).max()
        assert used <= 1, f"{name}: {used:.3g} of its bound"


@pytest.mark.parametrize("case", cases.pairs()[:20], ids=by_name)
def test_bounded_walk_has_the_values_of_the_truth(case):
    """bounds.py repeats the mathematics with error terms; its values are those of truth.py."""
    inputs = {name: None if x is None else x.double() for name, x in case.inputs().items()}
    dy, dlast = (None if g is None else g.double() for g in case.output_gradients())
    expected = Expected(inputs, case.options, dy, dlast)
    y, last = truth.scan(inputs, case.options)
    for name, value in ({"y": y, "last_state": last} | truth.scan_adjoint(inputs, case.options, dy, dlast)).items():
        assert usage(value, expected.numbers[name], F64).max() <= 1, name


@pytest.mark.parametrize("anticausal", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_truth_of_the_convolution_is_torchs(width, anticausal):
    x, weight, bias = torch.randn(2, 3, 5, dtype=F64), torch.randn(3, width, dtype=F64), torch.randn(3, dtype=F64)
    padded = torch.nn.functional.pad(x.flip(2) if anticausal else x, (width - 1, 0))
    wanted = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=3)
    wanted = torch.nn.functional.silu(wanted.flip(2) if anticausal else wanted)
    torch.testing.assert_close(truth.conv(x, weight, bias, anticausal, True), wanted)


# -- the bounds --------------------------------------------------------------------------------------------------------


def spoil(name: str, case: Case, inputs: dict, dy: torch.Tensor) -> list[str]:
    """Which tensors of a faulty run the bounds refuse."""
    expected = Expected(inputs, case.options, dy)
    found = FAULTS[name](dict(inputs), case.options, dy) if name else honest(inputs, case.options, dy)
    refused = []
    for key, value in found.items():
        try:
            if key in expected.numbers:
                expected.check(key, value)
        except AssertionError:
            refused.append(key)
    return refused


FAULTY = Case(separate="scan", B_form="groups", channels=4, states=4, length=9, lanes=(3,))
STRONG = dataclasses.replace(FAULTY, values="strong", softplus=False, bias=False)
CASE_OF_FAULT = {
    "decayed state by subtraction": STRONG,
    "skip of the reverse direction lost": dataclasses.replace(FAULTY, separate="shared"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bounds_see_planted_faults(name):
    case = CASE_OF_FAULT.get(name, FAULTY)
    assert spoil(name, case, case.inputs(), case.output_gradients()[0]), f"no bound sees: {name}"


@pytest.mark.parametrize("values", ["plain", "strong", "weak", "growing"])
@pytest.mark.parametrize("length", [1, 16, 129])
def test_honest_runs_stay_well_inside(values, length):
    """Inside, and not by so much that the bound would be empty: at least 1 % of it is used somewhere in y."""
    case = Case(values=values, length=length)
    inputs, dy = case.inputs(), case.output_gradients()[0]
    assert spoil("", case, inputs, dy) == []
    number = Expected(inputs, case.options).numbers["y"]
    used = usage(honest(inputs, case.options, dy)["y"], number, torch.float32).max()
    assert 0.01 < used < 1


@pytest.mark.parametrize("values", ["plain", "strong", "weak"])
def test_forward_bound_is_inside_the_calibrated_form(values):
    """E_t = a E + u ((6 + 4 |d A|) a |h| + 7 |d u B|) and (N + 2) u sum |C h|, without softplus, D, z or reverse."""
    case = Case(direction="forward", values=values, softplus=False, bias=False, D=False, z=False, length=40)
    inputs = {name: None if x is None else x.double() for name, x in case.inputs().items()}
    p = truth.direction_of(inputs, case.options, False)
    trace = truth.run(p)
    unit = UNIT[torch.float32]
    exponent = (trace.d[:, :, None] * p.A[:, :, None, None]).abs()
    inflow = ((trace.d * p.u)[:, :, None] * p.B).abs()
    error, errors = torch.zeros_like(p.initial), []
    for t in range(case.length):
        step = (6 + 4 * exponent) * trace.a * trace.before.abs() + 7 * inflow
        error = trace.a[:, :, :, t] * error + unit * step[:, :, :, t]
        errors.append(error)
    calibrated = (p.C.abs() * torch.stack(errors, 3)).sum(2)
    calibrated = calibrated + (case.states + 2) * unit * (p.C * trace.after).abs().sum(2)
    ours = Expected(case.inputs(), case.options).numbers["y"].error
    assert (ours <= calibrated + 1e3 * 2.0**-126).all()


def test_constants_cover_the_polynomials_they_were_derived_from():
    """Truncation errors of the forms named in rounding.py, in units of 2^-24, found by evaluating them in float64."""
    unit = UNIT[torch.float32]
    r = torch.linspace(-1 / 64, 1 / 64, 100_001, dtype=F64)
    table = ((1 + r * (0.6931573 + r * 0.24022654)) / torch.exp2(r) - 1).abs().max() / unit
    r = torch.linspace(-0.5, 0.5, 100_001, dtype=F64)
    quintic = torch.zeros_like(r)
    for c in (0.0013264727, 0.009671513, 0.055507336, 0.24022242, 0.693147, 1.0):
        quintic = quintic * r + c
    degree_five = (quintic / torch.exp2(r) - 1).abs().max() / unit
    assert table + 1 + 0.03 + 1 <= EXP
    assert degree_five + 1 + 0.54 <= EXP
    e = torch.linspace(1e-6, 1, 100_001, dtype=F64)
    p = torch.zeros_like(e)
    for c in (-0.0033184732, 0.020204589, -0.05766445, 0.10680556, -0.15355396, 0.19695401, -0.24958588, 0.33330512,
              -0.4999993, 1.0):  # fmt: skip
        p = p * e + c
    assert (p * e / torch.log1p(e) - 1).abs().max() / unit + 2.9 <= LOG1P
    s = e / (2 + e)
    series = sum(2 / (2 * k + 1) * s ** (2 * k + 1) for k in range(7))
    grows = (s / ((1 - s * s) * torch.atanh(s))).max()
    assert (series / torch.log1p(e) - 1).abs().max() / unit + (1 + 2 + 1) * grows + 1 + 0.2 <= LOG1P


def test_rounded_arithmetic_bounds_float32_arithmetic():
    """Each rule of rounding.py against the same operation in float32 on a million random pairs."""
    x, y = (torch.randn(1_000_000) * torch.exp(4 * torch.randn(1_000_000)) for _ in range(2))

    def number(value):
        return Rounded(value.double(), torch.zeros_like(value, dtype=F64), UNIT[torch.float32], 2.0**-126)

    a, b = number(x), number(y)
    small = x.clamp(-80, 80)
    pairs = {
        "sum": (x + y, a + b),
        "product": (x * y, a * b),
        "exp": (small.exp(), number(small).exp()),
        "sigmoid": (torch.sigmoid(small), number(small).sigmoid()),
        "softplus": (truth.softplus(small), number(small).softplus()),
        "bfloat16": (x.bfloat16(), a.stored(torch.bfloat16)),
        "float16": (x.clamp(-6e4, 6e4).half(), number(x.clamp(-6e4, 6e4)).stored(torch.float16)),
    }
    for name, (result, bound) in pairs.items():
        used = usage(result, bound, torch.float32).max()
        assert used <= 1, f"{name}: {used:.3g} of its bound"


# -- the cases ---------------------------------------------------------------------------------------------------------

FAMILIES = ("sizes", "classic", "layouts", "by_tensor", "regimes", "pairs", "triples", "core")


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_unique(family):
    names = [case.name for case in getattr(cases, family)()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("family", "names", "together"), [(cases.pairs, tuple(cases.CHOICES), 2), (cases.triples, cases.INSTANTIATED, 3)]
)
def test_every_combination_of_choices_occurs(family, names, together):
    rows = [{**dataclasses.asdict(c), "task": (c.direction, c.merge)} for c in family()]
    for some in itertools.combinations(names, together):
        seen = {tuple(row[name] for name in some) for row in rows}
        assert seen == set(itertools.product(*(cases.CHOICES[name] for name in some))), some


@pytest.mark.parametrize("case", cases.by_tensor(), ids=by_name)
def test_only_one_tensor_lies_oddly(case):
    def tensors(case):
        return case.inputs() | dict(zip(("dy", "dlast"), case.output_gradients(), strict=True))

    plain, odd = tensors(dataclasses.replace(case, layout="lanes", odd_one=None)), tensors(case)
    same = {name for name, x in odd.items() if x is None or x.stride() == plain[name].stride()}
    assert same >= odd.keys() - {case.odd_one}
    if case.layout != "expanded":
        assert_same_bits(odd[case.odd_one], plain[case.odd_one])


@pytest.mark.parametrize("layout", (*cases.LAYOUTS, *cases.ODD_LAYOUTS, *(f"random-{n}" for n in range(12))))
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6), (2, 3, 1, 5), (4, 3), (6,)])
def test_layouts_keep_the_values(layout, shape):
    x = torch.randn(shape)
    moved = cases.lay_out(x, layout)
    if layout == "expanded":
        assert 0 in moved.stride()
    else:
        assert_same_bits(moved, x)


def test_layouts_are_what_their_names_say():
    x = torch.randn(2, 3, 4, 5, 6)
    assert cases.lay_out(x, "lanes").is_contiguous()
    assert cases.lay_out(x, "length").stride(2) == cases.lay_out(x, "channels").stride(1) == 1
    assert cases.lay_out(x, "batch-inner").stride(0) == 1
    assert cases.lay_out(x, "stepped").stride(-1) == 2
    assert cases.lay_out(x, "offset").storage_offset() == 1
    assert cases.lay_out(x, "narrowed").stride(0) > x.stride(0)
    cropped = cases.lay_out(x, "cropped")
    assert cropped.stride(3) != cropped.shape[4] * cropped.stride(4)
    assert cases.lay_out(torch.randn(2, 3, 1), "odd-strides").stride(2) == 17
