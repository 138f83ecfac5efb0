"""What the layer benchmark measures and what it leaves out, told by processes that only pretend."""

import dataclasses

import pytest

from benchmarks.layers import layers
from benchmarks.layers.candidates import ALL, BASE, Shape, candidate_named
from benchmarks.layers.options import LayerOptions
from benchmarks.measure.journal import Journal
from ssmvdm.errors import InputError

GATE = {"passed": True, "checks": []}
OPTIONS = LayerOptions(layers=(BASE, "s6"), levels=(), frames=(16, 64), budget_seconds=3.0, threads=1)


class Processes:
    """Answers of children: a call takes `seconds`(layer, mode, frames); `replies`: by task, instead of these."""

    def __init__(self, seconds, **replies):
        self.seconds, self.replies, self.asked = seconds, replies, []

    def __call__(self, request, timeout=None):
        self.asked.append(request)
        if request["task"] in self.replies:
            return self.replies[request["task"]](request)
        if request["task"] == "environment":
            return {"device": "a machine"}
        return self.alone(request) if request["task"] == "layer_alone" else self.in_turns(request)

    def alone(self, request):
        found: dict = {"parameters": 7}
        for mode in request["modes"]:
            took = self.seconds(request["layer"], mode, request["shape"]["frames"])
            found[mode] = {"status": "ok", "detail": "", "peak_bytes": [100], "call_seconds": took}
        return found

    def in_turns(self, request):
        row = {"status": "ok", "detail": "", "gate": GATE, "seconds": [1.0], "ratios": [1.0]}
        rows = {mode: {name: dict(row) for name in names} for mode, names in request["layers"].items()}
        return {"rows": rows, "caches": "warm", "clocks": {}}

    def tasks(self):
        return [request["task"] for request in self.asked]


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """measure(processes, options=..., resume=...) -> the rows by (layer, mode, frames)."""

    def run(processes, options=OPTIONS, resume=False):
        monkeypatch.setattr(layers, "call_child", processes)
        monkeypatch.setattr("benchmarks.measure.children.call_child", processes)
        result = layers.measure(options, lambda *progress: None, Journal(tmp_path / "journal", {}, resume))
        return {(row["layer"], row["mode"], row["frames"]): row for row in result["layers"]}

    return run


def test_all_is_measured_alone_and_then_in_turns(measure):
    processes = Processes(lambda *key: 0.1)
    rows = measure(processes)
    assert processes.tasks() == ["environment", *2 * ["layer_alone", "layer_alone", "layers_in_turns"]]
    assert len(rows) == 8
    for row in rows.values():
        assert (row["status"], row["peak_bytes"], row["seconds"], row["parameters"]) == ("ok", [100], [1.0], 7)


def test_what_is_too_slow_is_not_timed_and_not_tried_with_more_frames(measure):
    processes = Processes(lambda layer, mode, frames: 1.5 if (layer, mode) == ("s6", "training") else 0.1)
    rows = measure(processes)
    assert "1.5 s (measured); 1.0 s" in rows["s6", "training", 16]["detail"]
    assert "6.0 s (expected from fewer frames)" in rows["s6", "training", 64]["detail"]
    for frames in (16, 64):
        row = rows["s6", "training", frames]
        assert row["status"] == "timeout" and "peak_bytes" not in row and "seconds" not in row
        assert rows["s6", "inference", frames]["status"] == "ok"
    asked = [request["modes"] for request in processes.asked if request.get("layer") == "s6"]
    assert asked == [["inference", "training"], ["inference"]]
    timed = [request["layers"]["training"] for request in processes.asked if request["task"] == "layers_in_turns"]
    assert timed == [[BASE], [BASE]]


def test_a_layer_that_is_too_slow_in_both_modes_is_not_asked_again(measure):
    processes = Processes(lambda layer, mode, frames: 2.0 if layer == "s6" else 0.1)
    rows = measure(processes)
    assert [request["shape"]["frames"] for request in processes.asked if request.get("layer") == "s6"] == [16]
    assert {rows["s6", mode, 64]["status"] for mode in layers.MODES} == {"timeout"}


@pytest.mark.parametrize("status", ["timeout", "out of memory", "error"])
def test_a_process_that_fails_is_a_row_of_every_mode_and_the_others_go_on(measure, status):
    class Failing(Processes):
        def alone(self, request):
            return {"status": status, "detail": "why"} if request["layer"] == "s6" else super().alone(request)

    processes = Failing(lambda *key: 0.1)
    rows = measure(processes)
    assert {row["status"] for (layer, *_), row in rows.items() if layer == BASE} == {"ok"}
    assert {rows["s6", mode, 16]["status"] for mode in layers.MODES} == {status}
    tried_again = [request["shape"]["frames"] for request in processes.asked if request.get("layer") == "s6"]
    assert tried_again == ([16] if status == "timeout" else [16, 64])


def test_a_failed_gate_leaves_no_numbers(measure):
    class Wrong(Processes):
        def in_turns(self, request):
            answer = super().in_turns(request)
            wrong = {"status": "gate failed", "detail": "output: 1, allowed 0", "gate": {"passed": False, "checks": []}}
            answer["rows"]["training"]["s6"] = wrong
            return answer

    rows = measure(Wrong(lambda *key: 0.1))
    assert rows["s6", "training", 16].keys() == {"place", "frames", "layer", "mode", "status", "detail", "gate"}
    assert rows["s6", "training", 16]["status"] == "gate failed"
    assert rows["s6", "inference", 16]["status"] == "ok"


def test_when_the_process_of_all_layers_dies_no_row_has_numbers(measure):
    dead = {"status": "out of memory", "detail": "killed by the system (signal 9)"}
    rows = measure(Processes(lambda *key: 0.1, layers_in_turns=lambda request: dead))
    assert all(row["status"] == "out of memory" and "peak_bytes" not in row for row in rows.values())


def test_a_run_that_goes_on_asks_for_nothing_twice(measure):
    first = measure(Processes(lambda *key: 0.1))
    again = Processes(lambda *key: 0.1)
    assert measure(again, resume=True) == first
    assert again.asked == []


def test_a_device_that_is_not_there_is_one_sentence(measure):
    missing = {"status": "error", "detail": "AssertionError: Torch not compiled with CUDA enabled"}
    options = dataclasses.replace(OPTIONS, device="cuda")
    with pytest.raises(InputError, match="--device cuda: no such device can be used: AssertionError"):
        measure(Processes(lambda *key: 0.1, gpu=lambda request: missing), options)


@pytest.mark.parametrize(
    ("took", "frames", "expected"),
    [
        ([], 64, 0.0),
        ([(16, 1.0)], 64, 4.0),
        ([(16, 1.0), (32, 4.0)], 64, 16.0),
        ([(16, 1.0), (32, 1.0)], 64, 2.0),
        ([(16, float("inf"))], 64, float("inf")),
    ],
)
def test_expected_seconds(took, frames, expected):
    assert layers.expected_seconds(took, frames) == pytest.approx(expected)


def test_the_shapes_are_those_of_the_papers_network():
    shapes = LayerOptions(frames=(64, 16)).shapes()
    assert [(shape.channels, shape.side) for shape in shapes[:4]] == [(112, 32), (224, 16), (448, 8), (896, 4)]
    assert [shape.frames for shape in shapes] == [16, 16, 16, 16, 16, 64]
    assert LayerOptions(levels=(3,), sweep_size=32, frames=(16,)).shapes() == [Shape(3, 32, 16)]


def test_parts_of_a_run_of_all_benchmarks():
    for options in (LayerOptions.quick(), LayerOptions.full()):
        options.check()
        assert BASE in options.layers
    assert LayerOptions.full().layers == ALL
    assert LayerOptions(device="cuda").timed_launches() >= 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "--layers: expected at least one"),
        ({"layers": ("lstm",)}, "--layers: unknown layer 'lstm'; expected one of attention-einsum, "),
        ({"layers": ("bi-s6:quick",)}, "--layers: unknown layer 'bi-s6:quick'; expected fast or published"),
        ({"layers": ("attention-sdpa:fast",)}, "--layers: unknown layer 'attention-sdpa:fast'"),
        ({"layers": ("s6", "s6")}, "--layers: the same value twice in s6 s6"),
        ({"levels": (5,)}, "--levels: expected levels from 1 to 4, got 5"),
        ({"sweep_level": 0}, "--sweep-level: expected levels from 1 to 4, got 0"),
        ({"frames": ()}, "--frames: expected at least one"),
        ({"frames": (0,)}, "--frames: expected a whole number of at least 1, got 0"),
        ({"launches": 0}, "--launches: expected a whole number of at least 1, got 0"),
        ({"threads": 0}, "--threads: expected a whole number of at least 1, got 0"),
        ({"size": 12}, "--size: expected a multiple of 8 pixels, got 12"),
        ({"sweep_size": 0}, "--sweep-size: expected a multiple of 8 pixels, got 0"),
        ({"device": "tpu"}, "--device: expected cpu or cuda, got 'tpu'"),
        ({"budget_seconds": 0.0}, "--budget-seconds: expected a positive number, got 0.0"),
    ],
)
def test_options_that_cannot_be_used(change, message):
    with pytest.raises(InputError) as caught:
        LayerOptions(**change).check()
    assert str(caught.value).startswith(message)


def test_an_unknown_layer_is_told_all_there_are():
    with pytest.raises(ValueError) as caught:
        candidate_named("lstm")
    for name in ("bi-s6", "bi-s6/gss", "sdpa-rotary", "flex-attention"):
        assert f"{name}, " in str(caught.value) and candidate_named(name).name == name
    assert str(caught.value).endswith("or a state-space layer with :fast or :published behind it")


def test_names_and_labels():
    assert candidate_named("bi-s6/gss:published").label == "bi-S6, gss mixer, as published"
    assert candidate_named("bi-s6:published").temporal == candidate_named("bi-s6").temporal
    assert candidate_named("attention-einsum").has_bias and not candidate_named("linear-attention").has_bias
