"""What the functions and the layer of `ssmvdm_kernels.compat` refuse: in words, before anything is computed."""

import inspect

import pytest
import torch

from ssmvdm_kernels.compat import inner, mamba, vim

from .test_compat import layer_tensors


def zeros(*shape, dtype=torch.float64, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


# what is changed in a call of 6 channels, 3 states, rank 2 and 5 outputs; the error; pieces of the message in order
SINGLE, INTEGER = {"dtype": torch.float32}, {"dtype": torch.int64}
ROWS = ["x_proj_weight must have the shape", "rank of delta_proj_weight + states of A + states of A"]
WRONG_LAYERS = [
    ({"xz": None}, TypeError, ["xz must be a torch.Tensor", "None"]),
    ({"xz": zeros(2, 12, 9, **INTEGER)}, TypeError, ["xz must be float32 or bfloat16", "int64"]),
    ({"xz": zeros(2, 11, 9)}, ValueError, ["xz must have the shape (batch, 2 channels, length)", "(2, 11, 9)"]),
    ({"xz": zeros(12, 9)}, ValueError, ["xz must have the shape (batch, 2 channels, length)", "(12, 9)"]),
    ({"xz": zeros(2, 12, 9, 1)}, ValueError, ["xz must have the shape", "(2, 12, 9, 1)"]),
    ({"xz": zeros(2, 14, 9)}, ValueError, ["conv1d_weight must have", "(7, 1, 4)", "(6, 1, 4)"]),
    ({"conv1d_weight": None}, TypeError, ["conv1d_weight must be a torch.Tensor", "None"]),
    ({"conv1d_weight": zeros(6, 2, 4)}, ValueError, ["conv1d_weight must have", "(6, 1, 4)", "(6, 2, 4)"]),
    ({"conv1d_weight": zeros(5, 4)}, ValueError, ["conv1d_weight must have", "(6, 4)", "(5, 4)"]),
    ({"conv1d_weight": zeros()}, ValueError, ["conv1d_weight must have", "()"]),
    ({"conv1d_weight": zeros(6, 1, 0)}, ValueError, ["conv1d_weight must have a width of at least 1", "(6, 1, 0)"]),
    ({"conv1d_weight": zeros(6, 1, 4, **SINGLE)}, TypeError, ["conv1d_weight must be float64", "float32"]),
    ({"conv1d_bias": zeros(1)}, ValueError, ["conv1d_bias must have one value per channel", "(6,)", "(1,)"]),
    ({"x_proj_weight": [[0.0]]}, TypeError, ["x_proj_weight must be a torch.Tensor", "list"]),
    ({"x_proj_weight": zeros(9, 6)}, ValueError, [*ROWS, "(8, 6)", "(9, 6)"]),
    ({"x_proj_weight": zeros(7, 6)}, ValueError, [*ROWS, "(8, 6)", "(7, 6)"]),
    ({"x_proj_weight": zeros(8, 5)}, ValueError, [*ROWS, "(8, 6)", "(8, 5)"]),
    ({"x_proj_weight": zeros(8, 6, **SINGLE)}, TypeError, ["x_proj_weight must be float64", "float32"]),
    ({"x_proj_weight": zeros(8, 6, device="meta")}, ValueError, ["x_proj_weight must be on the device of xz", "meta"]),
    ({"B": zeros(6, 3)}, ValueError, ["x_proj_weight must have", "+ states of A, channels", "(5, 6)", "(8, 6)"]),
    ({"delta_proj_weight": zeros(6, 3)}, ValueError, [*ROWS, "(9, 6)", "(8, 6)"]),
    ({"delta_proj_weight": zeros(5, 2)}, ValueError, ["delta_proj_weight must have", "(6, 2)", "(5, 2)"]),
    ({"A": zeros(6, 4)}, ValueError, [*ROWS, "(10, 6)", "(8, 6)"]),
    ({"A": zeros(6)}, ValueError, ["A must have the shape (channels of x, states)", "(6,)"]),
    ({"A": zeros(6, 3, dtype=torch.complex128)}, TypeError, ["A must be float64", "complex128"]),
    ({"D": zeros(1)}, ValueError, ["D must have one value per channel", "(6,)", "(1,)"]),
    ({"delta_bias": zeros(6, **SINGLE)}, TypeError, ["delta_bias must be float64", "float32"]),
    ({"B_proj_bias": zeros(1)}, ValueError, ["B_proj_bias must have one value per state", "(3,)", "(1,)"]),
    ({"C_proj_bias": zeros(3, **INTEGER)}, TypeError, ["C_proj_bias must be float32 or", "int64"]),
    ({"delta_softplus": 1}, TypeError, ["delta_softplus must be True or False", "1"]),
]
CONSTANT = {"C": zeros(6, 3), "x_proj_weight": zeros(5, 6)}
WRONG_CONSTANTS = [
    (CONSTANT | {"C": zeros(6, 4)}, ValueError, ["C must have the shape (channels, states)", "(6, 3)", "(6, 4)"]),
    (CONSTANT | {"C": zeros(6)}, ValueError, ["C must have the shape", "(6,)"]),
    (CONSTANT | {"C": zeros(6, 3, **SINGLE)}, TypeError, ["C must be float64", "float32"]),
    (CONSTANT | {"C": 1.0}, TypeError, ["C must be a torch.Tensor", "1.0"]),
]
WRONG_OUTPUTS = [
    ({"out_proj_weight": None}, TypeError, ["out_proj_weight must be a torch.Tensor", "None"]),
    ({"out_proj_weight": zeros(5, 7)}, ValueError, ["out_proj_weight must have", "(5, 6)", "(5, 7)"]),
    ({"out_proj_bias": zeros(1)}, ValueError, ["out_proj_bias must have one value per row", "(5,)", "(1,)"]),
]
WRONG_NORMS = [
    ({"b_rms_weight": zeros(1)}, ValueError, ["b_rms_weight must have one value per state", "(3,)", "(1,)"]),
    ({"c_rms_weight": zeros(6)}, ValueError, ["c_rms_weight must have one value per state", "(3,)", "(6,)"]),
    ({"dt_rms_weight": zeros(2)}, ValueError, ["dt_rms_weight must have one value per channel", "(6,)", "(2,)"]),
    ({"checkpoint_lvl": torch.zeros(2)}, ValueError, ["checkpoint_lvl must be one of 0, 1", "tensor"]),
]
WRONG_REVERSE = [
    ({"A_b": None}, TypeError, ["A_b must be a torch.Tensor", "None"]),
    ({"A_b": zeros(6, 4)}, ValueError, ["A_b must have the shape of A", "(6, 3)", "(6, 4)"]),
]
WRONG = {
    mamba.mamba_inner_fn: WRONG_LAYERS + WRONG_CONSTANTS + WRONG_OUTPUTS + WRONG_NORMS,
    mamba.mamba_inner_ref: WRONG_LAYERS + WRONG_CONSTANTS + WRONG_OUTPUTS,
    vim.bimamba_inner_fn: WRONG_LAYERS + WRONG_CONSTANTS + WRONG_OUTPUTS + WRONG_REVERSE,
    vim.mamba_inner_fn_no_out_proj: WRONG_LAYERS + WRONG_CONSTANTS,
}


@pytest.fixture
def computes_nothing(monkeypatch):
    def compute(*arguments, **options):
        raise AssertionError("something is computed")

    monkeypatch.setattr(inner, "recomputed", compute)


def arguments_of(function):
    names = inspect.signature(function).parameters
    t = {name: tensor.detach() for name, tensor in layer_tensors().items() if name in names}
    return t | {"A_b": t["A"]} if "A_b" in names else t


@pytest.mark.parametrize(
    "function,case",
    [(function, case) for function, cases in WRONG.items() for case in cases],
    ids=lambda value: "-".join((*value[0], value[2][-1])) if isinstance(value, tuple) else value.__name__,
)
def test_the_inner_functions_refuse_in_words_before_they_compute(function, case, computes_nothing):
    change, error, pieces = case
    with pytest.raises(error) as caught:
        function(**arguments_of(function) | change)
    message, place = str(caught.value), 0
    for piece in (f"{function.__name__}: ", *pieces):
        found = message.find(piece, place)
        assert found >= 0, f"{piece!r} is not in the rest of: {message}"
        place = found + len(piece)


@pytest.mark.parametrize("function", WRONG, ids=lambda function: function.__name__)
def test_the_inner_functions_refuse_under_autocast_what_it_does_not_cast(function, computes_nothing):
    t = arguments_of(function)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match="xz must be float32 or bfloat16 under autocast, but is float16"):
            function(**t | {"xz": t["xz"].half()})
        with pytest.raises(TypeError, match=r"A must be .* with float32 in xz, but is int64"):
            function(**t | {"xz": t["xz"].float(), "A": t["A"].long()})
        with pytest.raises(AssertionError, match="something is computed"):
            function(**t | {"xz": t["xz"].float()})


def test_vims_layer_refuses_in_words():
    with pytest.raises(ValueError, match="bimamba_type must be one of 'none', 'v1', 'v2', but is 'v3'"):
        vim.Mamba(8, bimamba_type="v3")
    with pytest.raises(ValueError, match="dt_init must be one of 'random', 'constant', but is 'zero'"):
        vim.Mamba(8, dt_init="zero")
    with pytest.raises(ValueError, match="inference_params must be None"):
        vim.Mamba(8)(torch.randn(1, 3, 8), inference_params={})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be at least 1, but is 0"),
        ({"d_state": 0}, ValueError, "d_state must be at least 1, but is 0"),
        ({"d_conv": 0}, ValueError, "d_conv must be at least 1, but is 0"),
        ({"dt_rank": 0}, ValueError, "dt_rank must be at least 1, but is 0"),
        ({"dt_rank": "full"}, TypeError, "dt_rank must be an integer, but is 'full'"),
        ({"d_model": "8"}, TypeError, "d_model must be an integer, but is '8'"),
        ({"expand": 0.1}, ValueError, "expand must be finite and at least 1 / d_model = 1 / 8, but is 0.1"),
        ({"expand": float("nan")}, ValueError, "expand must be finite and at least 1 / d_model = 1 / 8, but is nan"),
        ({"expand": float("inf")}, ValueError, "expand must be finite"),
        ({"expand": "2"}, TypeError, "expand must be a number, but is of type str"),
        ({"expand": True}, TypeError, "expand must be a number, but is of type bool"),
    ],
)
def test_a_wrong_size_of_the_layer(options, error, message):
    with pytest.raises(error, match=f"^Mamba: {message}"):
        vim.Mamba(**{"d_model": 8} | options)


@pytest.mark.parametrize(
    ("hidden_states", "error", "message"),
    [
        (None, TypeError, "hidden_states must be a torch.Tensor, but is None"),
        (torch.zeros(5, 8), ValueError, r"hidden_states must have the shape \(batch, length, 8\), but has \(5, 8\)"),
        (torch.zeros(2, 5, 7), ValueError, r"but has \(2, 5, 7\)"),
        (torch.zeros(2, 5, 8, dtype=torch.float64), TypeError, "must be float32 like the parameters, but is float64"),
        (torch.zeros(2, 5, 8, device="meta"), ValueError, "on the device of the parameters, cpu, but is on meta"),
    ],
)
def test_a_wrong_input_to_the_layer(hidden_states, error, message):
    with pytest.raises(error, match=f"^Mamba: .*{message}"):
        vim.Mamba(8)(hidden_states)
