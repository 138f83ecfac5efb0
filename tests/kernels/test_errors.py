"""Wrong calls: the right type of error, before anything is computed, naming tensor, expectation and what came."""

import numpy as np
import pytest
import torch

from ssmvdm_kernels import (
    BidirectionalMamba,
    available_backends,
    bidirectional_conv1d,
    bidirectional_selective_scan,
    causal_conv1d,
    explain,
    selective_scan,
)

BATCH, CHANNELS, LENGTH, STATES, WIDTH = 2, 8, 6, 4, 3
LANES = (2,)


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(*shape, dtype=dtype, device=device)


def sequence(length=LENGTH, channels=CHANNELS, batch=BATCH, lanes=LANES, **kind):
    return zeros(batch, channels, length, *lanes, **kind)


def modulation(states=STATES, **kind):
    return sequence(channels=states, **kind)


def scan_call(**changes):
    call = {"u": sequence(), "delta": sequence(), "A": zeros(CHANNELS, STATES), "B": modulation(), "C": modulation()}
    return selective_scan(**call | changes)


def both_call(**changes):
    call = {"u": sequence(), "delta": sequence(), "A": zeros(CHANNELS, STATES), "B": modulation(), "C": modulation()}
    return bidirectional_selective_scan(**call | changes)


def conv_call(**changes):
    return bidirectional_conv1d(**{"x": sequence(), "weight": zeros(CHANNELS, WIDTH)} | changes)


def state(dtype=torch.float32, states=STATES, device="cpu"):
    return zeros(BATCH, CHANNELS, states, *LANES, dtype=dtype, device=device)


def grouped(groups, states=STATES):
    return zeros(BATCH, groups, states, LENGTH, *LANES)


HALF, DOUBLE, COMPLEX = {"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"dtype": torch.complex64}
META = {"device": "meta"}
NESTED = torch.nested.nested_tensor([zeros(CHANNELS, LENGTH)] * BATCH)
WHOLE = (BATCH, CHANNELS, LENGTH, *LANES)

# the call, the change, the error, and pieces of the message in order: tensor, expectation, what came
TYPES = [
    (scan_call, {"u": None}, TypeError, ["u must be a torch.Tensor", "None"]),
    (scan_call, {"u": [[[1.0]]]}, TypeError, ["u must be a torch.Tensor", "list"]),
    (scan_call, {"delta": None}, TypeError, ["delta must be a torch.Tensor", "None"]),
    (scan_call, {"A": 1.5}, TypeError, ["A must be a torch.Tensor", "1.5", "float"]),
    (scan_call, {"B": "B"}, TypeError, ["B must be a torch.Tensor", "str"]),
    (scan_call, {"C": None}, TypeError, ["C must be a torch.Tensor", "None"]),
    (scan_call, {"D": 1.0}, TypeError, ["D must be a torch.Tensor", "1.0"]),
    (scan_call, {"z": True}, TypeError, ["z must be a torch.Tensor", "bool"]),
    (scan_call, {"delta_bias": 0}, TypeError, ["delta_bias must be a torch.Tensor", "0"]),
    (scan_call, {"initial_state": 0.0}, TypeError, ["initial_state must be a torch.Tensor", "0.0"]),
    (scan_call, {"u": sequence().to_sparse()}, TypeError, ["u must be a dense tensor", "sparse_coo"]),
    (scan_call, {"u": NESTED}, TypeError, ["u must be a dense tensor", "nested"]),
    (scan_call, {"B": NESTED}, TypeError, ["B must be a dense tensor", "nested"]),
    (scan_call, {"delta_softplus": 1}, TypeError, ["delta_softplus must be True or False", "1"]),
    (scan_call, {"delta_softplus": zeros(CHANNELS)}, TypeError, ["delta_softplus must be True or False", "Tensor"]),
    (scan_call, {"return_last_state": None}, TypeError, ["return_last_state must be True or False", "None"]),
    (scan_call, {"reverse": "yes"}, TypeError, ["reverse must be True or False", "'yes'"]),
    (both_call, {"delta_softplus": "no"}, TypeError, ["delta_softplus must be True or False", "'no'"]),
    (both_call, {"u_b": 3}, TypeError, ["u_b must be a torch.Tensor", "3"]),
    (both_call, {"D_b": 1.0}, TypeError, ["D_b must be a torch.Tensor", "1.0"]),
    (both_call, {"initial_state": state()}, TypeError, ["initial_state"]),
    (conv_call, {"x": None}, TypeError, ["x must be a torch.Tensor", "None"]),
    (conv_call, {"weight": None}, TypeError, ["weight must be a torch.Tensor", "None"]),
    (conv_call, {"bias": 1.0}, TypeError, ["bias must be a torch.Tensor", "1.0"]),
    (conv_call, {"weight_b": [1]}, TypeError, ["weight_b must be a torch.Tensor", "list"]),
    (conv_call, {"weight": NESTED}, TypeError, ["weight must be a dense tensor", "nested"]),
]
DTYPES = [
    (scan_call, {"u": sequence(dtype=torch.int64)}, TypeError, ["u must be float32, bfloat16", "int64"]),
    (scan_call, {"u": sequence(**COMPLEX)}, TypeError, ["u must be float32, bfloat16", "complex64"]),
    (scan_call, {"u": sequence(dtype=torch.bool)}, TypeError, ["u must be float32, bfloat16", "bool"]),
    (scan_call, {"u": sequence(**HALF)}, TypeError, ["delta must be bfloat16", "the dtype of u", "float32"]),
    (scan_call, {"delta": sequence(**HALF)}, TypeError, ["delta must be float32", "the dtype of u", "bfloat16"]),
    (scan_call, {"z": sequence(dtype=torch.float16)}, TypeError, ["z must be float32", "float16"]),
    (scan_call, {"A": zeros(CHANNELS, STATES, **COMPLEX)}, TypeError, ["A must be float32", "complex64"]),
    (scan_call, {"A": zeros(CHANNELS, STATES, **DOUBLE)}, TypeError, ["A must be float32", "float64"]),
    (scan_call, {"A": zeros(CHANNELS, STATES, **HALF)}, TypeError, ["A must be float32", "bfloat16"]),
    (scan_call, {"B": modulation(**HALF)}, TypeError, ["B must be float32", "the dtype of u", "bfloat16"]),
    (scan_call, {"C": grouped(2).double()}, TypeError, ["C must be float32", "float64"]),
    (scan_call, {"B": zeros(CHANNELS, STATES, **HALF)}, TypeError, ["B must be float32", "bfloat16"]),
    (scan_call, {"D": zeros(CHANNELS, dtype=torch.int32)}, TypeError, ["D must be float32", "int32"]),
    (scan_call, {"delta_bias": zeros(CHANNELS, **HALF)}, TypeError, ["delta_bias must be float32", "bfloat16"]),
    (scan_call, {"initial_state": state(torch.float64)}, TypeError, ["initial_state must be float32", "float64"]),
    (both_call, {"u_b": sequence(**HALF)}, TypeError, ["u_b must be float32", "bfloat16"]),
    (both_call, {"A_b": zeros(CHANNELS, STATES, **DOUBLE)}, TypeError, ["A_b must be float32", "float64"]),
    (both_call, {"C_b": modulation(**HALF)}, TypeError, ["C_b must be float32", "bfloat16"]),
    (both_call, {"delta_bias_b": zeros(CHANNELS, **DOUBLE)}, TypeError, ["delta_bias_b must be float32", "float64"]),
    (conv_call, {"x": sequence(dtype=torch.uint8)}, TypeError, ["x must be float32, bfloat16", "uint8"]),
    (conv_call, {"weight": zeros(CHANNELS, WIDTH, **DOUBLE)}, TypeError, ["weight must be float32", "float64"]),
    (conv_call, {"x": sequence(**DOUBLE)}, TypeError, ["weight must be float64", "float32"]),
    (conv_call, {"bias": zeros(CHANNELS, **HALF)}, TypeError, ["bias must be float32", "bfloat16"]),
]
SHAPES = [
    (scan_call, {"u": zeros(2, 3)}, ValueError, ["u must have the shape (batch, channels, length, *lanes)", "(2, 3)"]),
    (scan_call, {"u": zeros(())}, ValueError, ["u must have the shape", "()"]),
    (scan_call, {"delta": sequence(5)}, ValueError, ["delta", "shape of u", str(WHOLE), "(2, 8, 5, 2)"]),
    (scan_call, {"delta": sequence(lanes=())}, ValueError, ["delta", "shape of u", str(WHOLE), "(2, 8, 6)"]),
    (scan_call, {"delta": sequence(batch=1)}, ValueError, ["delta", "shape of u", str(WHOLE), "(1, 8, 6, 2)"]),
    (scan_call, {"z": sequence(channels=16)}, ValueError, ["z", "shape of u", str(WHOLE), "(2, 16, 6, 2)"]),
    (scan_call, {"A": zeros(7, STATES)}, ValueError, ["A", "(channels, states)", "8", "(7, 4)"]),
    (scan_call, {"A": zeros(CHANNELS)}, ValueError, ["A", "(channels, states)", "(8,)"]),
    (scan_call, {"A": zeros(1, CHANNELS, STATES)}, ValueError, ["A", "(channels, states)", "(1, 8, 4)"]),
    (scan_call, {"B": modulation(3)}, ValueError, ["B", "(2, 4, 6, 2)", "(2, 3, 6, 2)"]),
    (scan_call, {"B": modulation(length=7)}, ValueError, ["B", "(2, 4, 6, 2)", "(2, 4, 7, 2)"]),
    (scan_call, {"C": modulation(batch=1)}, ValueError, ["C", "(2, 4, 6, 2)", "(1, 4, 6, 2)"]),
    (scan_call, {"C": modulation(lanes=(3,))}, ValueError, ["C", "(2, 4, 6, 2)", "(2, 4, 6, 3)"]),
    (scan_call, {"B": zeros(STATES, CHANNELS)}, ValueError, ["B", "(8, 4)", "(4, 8)"]),
    (scan_call, {"B": zeros(STATES)}, ValueError, ["B", "(2, 4, 6, 2)", "(8, 4)", "(4,)"]),
    (scan_call, {"B": zeros(2, 4, 6)}, ValueError, ["B", "(2, 4, 6, 2)", "(2, 4, 6)"]),
    (scan_call, {"C": zeros(2, 1, 1, 4, 6, 2)}, ValueError, ["C", "groups", "(2, 1, 1, 4, 6, 2)"]),
    (scan_call, {"B": grouped(3)}, ValueError, ["groups of B must divide the 8 channels", "3"]),
    (scan_call, {"C": grouped(16)}, ValueError, ["groups of C must divide the 8 channels", "16"]),
    (scan_call, {"B": grouped(0)}, ValueError, ["groups of B must divide the 8 channels", "0"]),
    (scan_call, {"C": grouped(2, states=5)}, ValueError, ["C", "(2, 2, 4, 6, 2)", "(2, 2, 5, 6, 2)"]),
    (scan_call, {"D": zeros(7)}, ValueError, ["D", "one value per channel", "(8,)", "(7,)"]),
    (scan_call, {"D": zeros(CHANNELS, 1)}, ValueError, ["D", "one value per channel", "(8,)", "(8, 1)"]),
    (scan_call, {"D": zeros(())}, ValueError, ["D", "one value per channel", "(8,)", "()"]),
    (scan_call, {"delta_bias": zeros(9)}, ValueError, ["delta_bias", "(8,)", "(9,)"]),
    (scan_call, {"initial_state": state(states=3)}, ValueError, ["initial_state", "(2, 8, 4, 2)", "(2, 8, 3, 2)"]),
    (scan_call, {"initial_state": zeros(2, 8, 4)}, ValueError, ["initial_state", "(2, 8, 4, 2)", "(2, 8, 4)"]),
    (both_call, {"u_b": sequence(5)}, ValueError, ["u_b", "shape of u", str(WHOLE), "(2, 8, 5, 2)"]),
    (both_call, {"delta_b": sequence(7)}, ValueError, ["delta_b", "shape of u", "(2, 8, 7, 2)"]),
    (both_call, {"A_b": zeros(CHANNELS, 5)}, ValueError, ["A_b", "shape of A", "(8, 4)", "(8, 5)"]),
    (both_call, {"B_b": modulation(5)}, ValueError, ["B_b", "(2, 4, 6, 2)", "(2, 5, 6, 2)"]),
    (both_call, {"B_b": grouped(5)}, ValueError, ["groups of B_b must divide the 8 channels", "5"]),
    (both_call, {"C_b": zeros(8)}, ValueError, ["C_b", "(8, 4)", "(8,)"]),
    (both_call, {"D_b": zeros(4)}, ValueError, ["D_b", "(8,)", "(4,)"]),
    (both_call, {"delta_bias_b": zeros(1)}, ValueError, ["delta_bias_b", "(8,)", "(1,)"]),
    (conv_call, {"x": zeros(2, 8)}, ValueError, ["x must have the shape", "at least 3 dimensions", "(2, 8)"]),
    (conv_call, {"weight": zeros(7, WIDTH)}, ValueError, ["weight", "(channels, width)", "8", "(7, 3)"]),
    (conv_call, {"weight": zeros(CHANNELS, 1, WIDTH)}, ValueError, ["weight", "(channels, width)", "(8, 1, 3)"]),
    (conv_call, {"weight": zeros(CHANNELS, 0)}, ValueError, ["weight", "at least 1", "(8, 0)"]),
    (conv_call, {"bias": zeros(3)}, ValueError, ["bias", "(8,)", "(3,)"]),
    (conv_call, {"weight_b": zeros(CHANNELS, 5)}, ValueError, ["weight_b", "shape of weight", "(8, 3)", "(8, 5)"]),
    (conv_call, {"bias_b": zeros(CHANNELS, 1)}, ValueError, ["bias_b", "(8,)", "(8, 1)"]),
]
DEVICES = [
    (scan_call, {"delta": sequence(**META)}, ValueError, ["delta must be on the device of u, cpu", "meta"]),
    (scan_call, {"A": zeros(CHANNELS, STATES, **META)}, ValueError, ["A must be on the device of u, cpu", "meta"]),
    (scan_call, {"u": sequence(**META)}, ValueError, ["delta must be on the device of u, meta", "cpu"]),
    (scan_call, {"initial_state": state(device="meta")}, ValueError, ["initial_state must be on the device", "meta"]),
    (both_call, {"C_b": modulation(**META)}, ValueError, ["C_b must be on the device of u, cpu", "meta"]),
    (conv_call, {"bias": zeros(CHANNELS, **META)}, ValueError, ["bias must be on the device of x, cpu", "meta"]),
]
KNOWN = ["'auto', 'cuda', 'triton', 'cpu', 'reference'"]
CHOICES = [
    (scan_call, {"backend": "gpu"}, ValueError, ["backend must be one of", *KNOWN, "'gpu'"]),
    (scan_call, {"backend": None}, ValueError, ["backend must be one of", *KNOWN, "None"]),
    (both_call, {"backend": "CPU"}, ValueError, ["backend must be one of", *KNOWN, "'CPU'"]),
    (conv_call, {"backend": ""}, ValueError, ["backend must be one of", *KNOWN, "''"]),
    (scan_call, {"backend": "cuda"}, ValueError, ["backend='cuda' cannot take this call"]),
    (both_call, {"backend": "triton"}, ValueError, ["backend='triton' cannot take this call"]),
    (both_call, {"merge": "add"}, ValueError, ["merge must be one of 'sum', 'mean', 'cat', 'none'", "'add'"]),
    (both_call, {"merge": None}, ValueError, ["merge must be one of", "None"]),
    (both_call, {"merge": 2}, ValueError, ["merge must be one of", "2"]),
    (both_call, {"merge": np.array(["sum", "cat"])}, ValueError, ["merge must be one of", "array(["]),
    (scan_call, {"backend": np.array(["cpu", "cuda"])}, ValueError, ["backend must be one of", *KNOWN, "array(["]),
    (conv_call, {"activation": "gelu"}, ValueError, ["activation must be one of 'silu', None", "'gelu'"]),
    (conv_call, {"activation": True}, ValueError, ["activation must be one of", "True"]),
]
ALL = TYPES + DTYPES + SHAPES + DEVICES + CHOICES


def name_of(case):
    call, change, _, pieces = case
    return f"{call.__name__.removesuffix('_call')}-{'-'.join(change)}-{pieces[-1]}"


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_a_wrong_call_says_what_is_wrong(case):
    call, change, error, pieces = case
    with pytest.raises(error) as caught:
        call(**change)
    message, place = str(caught.value), 0
    for piece in pieces:
        found = message.find(piece, place)
        assert found >= 0, f"{piece!r} is not in the rest of: {message}"
        place = found + len(piece)


@pytest.mark.parametrize(
    "change", [{"u": [0.1] * 200_000}, {"merge": "sum" * 200_000}, {"delta_softplus": list(range(200_000))}]
)
def test_the_message_stays_short(change):
    with pytest.raises((TypeError, ValueError)) as caught:
        both_call(**change)
    assert len(str(caught.value)) < 200 and "..." in str(caught.value)


@pytest.mark.parametrize("call", [scan_call, both_call, conv_call])
def test_the_message_begins_with_the_function(call):
    function = {"scan": "selective_scan", "both": "bidirectional_selective_scan", "conv": "bidirectional_conv1d"}
    name = "x" if call is conv_call else "u"
    with pytest.raises(TypeError, match=f"^{function[call.__name__.removesuffix('_call')]}: {name} must be .*\\.$"):
        call(**{name: None})


def test_the_rest_of_the_process_is_unharmed():
    for call, change, error, _ in ALL:
        with pytest.raises(error):
            call(**change)
    for call in (scan_call, both_call, conv_call):
        call(backend=available_backends()[0])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_does_not_excuse_a_third_dtype(low):
    other = torch.float16 if low == torch.bfloat16 else torch.bfloat16
    with torch.autocast("cpu", low), pytest.raises(TypeError, match="delta must be"):
        scan_call(delta=sequence(dtype=other))


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"channels": 0}, ValueError, "channels must be at least 1, but is 0"),
        ({"channels": 8.0}, TypeError, "channels must be an integer, but is 8.0"),
        ({"states": 0}, ValueError, "states must be at least 1, but is 0"),
        ({"states": True}, TypeError, "states must be an integer, but is True"),
        ({"conv_width": -1}, ValueError, "conv_width must be at least 1, but is -1"),
        ({"expand": 0}, ValueError, "expand must be at least 1, but is 0"),
        ({"expand": 1.5}, TypeError, "expand must be an integer, but is 1.5"),
        ({"dt_rank": 0}, ValueError, "dt_rank must be at least 1, but is 0"),
        ({"dt_rank": "full"}, TypeError, "dt_rank must be an integer, but is 'full'"),
        ({"memory": "tiny"}, ValueError, "memory must be one of 'lean', 'fast', but is 'tiny'"),
    ],
)
def test_a_wrong_module(arguments, error, message):
    with pytest.raises(error, match=f"^BidirectionalMamba: {message}"):
        BidirectionalMamba(**{"channels": 8} | arguments)


@pytest.mark.parametrize(
    "x,error,message",
    [
        (None, TypeError, "x must be a torch.Tensor"),
        (zeros(2, 8), ValueError, r"x must have the shape \(batch, 8, length, \*lanes\), but has \(2, 8\)"),
        (zeros(2, 6, 8), ValueError, r"but has \(2, 6, 8\)"),
        (zeros(2, 8, 6, dtype=torch.float64), TypeError, "x must be float32 like the parameters"),
        (zeros(2, 8, 6, dtype=torch.int64), TypeError, "but is int64"),
        (zeros(2, 8, 6).to_sparse(), TypeError, "x must be a dense tensor, but its layout is torch.sparse_coo"),
        (zeros(2, 8, 6, device="meta"), ValueError, "x must be on the device of the parameters, cpu, but is on meta"),
    ],
)
def test_a_wrong_input_to_the_module(x, error, message):
    with pytest.raises(error, match=f"^BidirectionalMamba: .*{message}"):
        BidirectionalMamba(8)(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_autocast_takes_floating_inputs_only(dtype):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="x must be float32 like the parameters"):
        BidirectionalMamba(8)(zeros(2, 8, 6, dtype=dtype))


@pytest.mark.parametrize("u,named,error", [([1.0], {}, TypeError), (zeros(1, 2, 3), {"backend": "gpu"}, ValueError)])
def test_a_wrong_question_to_explain(u, named, error):
    with pytest.raises(error, match=r"^explain: "):
        explain(u, **named)


def test_one_direction_of_the_convolution_checks_its_arguments():
    x, weight = torch.zeros(1, 2, 3), torch.zeros(2, 4)
    with pytest.raises(TypeError, match="causal_conv1d: reverse must be True or False, but is 1"):
        causal_conv1d(x, weight, reverse=1)
    with pytest.raises(ValueError, match="causal_conv1d: activation must be one of 'silu', None, but is 'gelu'"):
        causal_conv1d(x, weight, activation="gelu")
    with pytest.raises(ValueError, match="causal_conv1d: weight must have the shape"):
        causal_conv1d(x, weight[:1])
