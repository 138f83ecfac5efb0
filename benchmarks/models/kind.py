"""How results of the memory benchmark are shown."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from math import exp, log
from statistics import median

from benchmarks.report.files import spread
from benchmarks.report.kinds import OK, PEAK_DRIFT, TIME_DRIFT, Kind, Measure, cell
from benchmarks.report.pictures import Panel, Picture
from ssmvdm.compared import PUBLISHED, Published, layer_named
from ssmvdm.process_memory import GIB, MIB
from ssmvdm.report.plots import authors_marks, curves
from ssmvdm.report.tables import Table

OURS = "bi-s6"
REFERENCE = ("attention-einsum", 112)  # layer and width whose memory other layers' widths are compared by
PREDICTED = "Predicted from saved bytes, activations of backward excluded"
STATE = "weights, gradients, Adam's two moments, averaged weights, what is saved for backward (float32, batch 1)"
PAPER = "the paper's setting: base width 112, 14 heads of 64, 16 states, 32×32 pixels, batch 1"
COLUMNS = {"frames": "frames", "base_channels": "base width", "memory_bytes": "memory"}  # key of rows -> for people


def check(result: dict) -> None:
    """Raises whatever comes first when a part that is drawn or tabulated is missing."""
    settings = result["settings"]
    for name in ("frames", "widths", "width_frames", "memories_bytes"):
        if not settings[name] or not all(isinstance(value, int) and value > 0 for value in settings[name]):
            raise ValueError(f"settings.{name}")
    for section in SECTIONS:
        for row in result[section]:
            if row["layer"] not in settings["layers"]:
                raise ValueError(f"row of {row['layer']!r} in {section}")
    _ = tables(result), pictures(result), method(result)


# -- tables ------------------------------------------------------------------------------------------------------------


def tables(result: dict) -> list[Table]:
    settings, small = result["settings"], _small(result["settings"])
    training = partial(_grid, result, "training", settings["frames"])
    sampling = partial(_grid, result, "sampling", settings["sampling_frames"])
    found = [
        *_against_ours(result),
        training("Peak memory of a training step, MiB", f"{small}; median of the repeats.", _peak, has_parameters=True),
        training("Time of a training step, s", f"{small}; median of the repeats, 10th to 90th percentile.", _seconds),
        training("Training, frames per second", f"{small}; of a clip, over the median time of a step.", _throughput),
        training("Saved for backward, MiB", f"{small}; exact, counted in the same step.", _saved_mib),
        sampling("Peak memory of a denoising step, MiB", f"{small}; one level of sampling.", _peak),
        sampling("Time of a denoising step, s", f"{small}; median of the repeats, 10th to 90th percentile.", _seconds),
        sampling(
            "A denoising step, frames per second",
            f"{small}; a sample takes a step for every level it visits.",
            _throughput,
        ),
        _modes(result),
    ]
    if result["limits"]:
        found.append(_limits(result))
    if result["saved"]:
        title, caption = "Saved for backward by the paper's network, GiB", f"{_capital(PAPER)}; exact, on fake tensors."
        found.append(_grid(result, "saved", settings["frames"], title, caption, _saved_gib, has_parameters=True))
        found += [_predicted(result), *(_widths(result, frames) for frames in settings["width_frames"])]
        if any(row["layer"] == REFERENCE[0] for row in result["widths"]):
            found.append(_equal_memory(result))
    return found


def _small(settings: dict) -> str:
    network = settings["network"]
    return f"U-Net of base width {network['base_channels']}, {network['size']}×{network['size']} pixels, batch 1"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _grid(result: dict, section: str, columns: list[int], title: str, caption: str, shown: Callable[[dict], str],
          key: str = "frames", heading: Callable[[int], str] = str, has_parameters: bool = False) -> Table:  # fmt: skip
    """Layers down, row[key] across."""
    rows = {(row["layer"], row[key]): row for row in result[section]}
    header = [COLUMNS[key], *(["parameters"] if has_parameters else []), *map(heading, columns)]
    body = []
    for name in result["settings"]["layers"]:
        own = [rows.get((name, column)) for column in columns]
        count = [_parameters(own)] if has_parameters else []
        body.append([layer_named(name).label, *count, *(cell(row, shown) for row in own)])
    return Table(title, caption, header, body)


def _parameters(rows: Iterable[dict | None]) -> str:
    """Of the network in millions, from the first row of a layer that has them."""
    counts = [row["parameters"] for row in rows if row and "parameters" in row]
    return f"{counts[0] / 1e6:.2f} M" if counts else "–"


def _peak(row: dict) -> str:
    return f"{median(row['peak_bytes']) / MIB:,.0f}"


def _saved_mib(row: dict) -> str:
    return f"{row['saved_bytes'] / MIB:,.0f}"


def _saved_gib(row: dict) -> str:
    return f"{row['saved_bytes'] / GIB:.2f}"


def _seconds(row: dict) -> str:
    values = spread(row["step_seconds"])
    return f"{values['median']:.2f} ({values['p10']:.2f}–{values['p90']:.2f})"


def _throughput(row: dict) -> str:
    return f"{_frames_per_second(row)[0]:.1f}"


def _frames_per_second(row: dict) -> list[float]:
    """By the median, the slowest and the fastest step."""
    return [row["frames"] / of(row["step_seconds"]) for of in (median, max, min)]


def _against_ours(result: dict) -> list[Table]:
    """Every layer over bi-S6 at the largest number of frames where both have numbers."""
    good = {
        (section, row["layer"], row["frames"]): row
        for section in ("training", "sampling") for row in result[section] if row["status"] == OK
    }  # fmt: skip
    body = []
    for name in result["settings"]["layers"]:
        cells = []
        for section in ("training", "sampling"):
            frames = {frames for x, layer, frames in good if (x, layer) == (section, name)}
            shared = [count for count in frames if (section, OURS, count) in good]
            if not shared:
                cells += ["–"] * 3
                continue
            theirs, ours = (good[section, x, max(shared)] for x in (name, OURS))
            ratios = [median(theirs[field]) / median(ours[field]) for field in ("peak_bytes", "step_seconds")]
            cells += [str(max(shared)), *(f"{ratio:.2f}×" for ratio in ratios)]
        if name != OURS and set(cells) != {"–"}:
            body.append([layer_named(name).label, *cells])
    header = ["", "training, frames", "memory", "time", "sampling, frames", "memory", "time"]
    caption = f"{_small(result['settings'])}; at the largest number of frames where both have numbers."
    return [Table("Other layers over bi-S6: peak memory and time of a step", caption, header, body)] if body else []


def _modes(result: dict) -> Table:
    frames = [result["modes"][0]["frames"]]
    caption = (
        "Time of a training step with memory “lean”, the default, over that with “fast”, which keeps everything; in "
        f"turns, medians. {_small(result['settings'])}."
    )
    return _grid(result, "modes", frames, "What lean memory costs", caption, _ratio)


def _ratio(row: dict) -> str:
    lean, fast = (median(x for x in row["step_seconds"][mode] if x is not None) for mode in ("lean", "fast"))
    return f"{row['ratio']:.2f} ({lean:.2f} / {fast:.2f} s)"


def _ratios(row: dict) -> list[float]:
    # The slower of them may have used up its time some turns earlier.
    pairs = zip(row["step_seconds"]["lean"], row["step_seconds"]["fast"], strict=False)
    return [lean / fast for lean, fast in pairs if lean is not None and fast is not None]


def _limits(result: dict) -> Table:
    rows = {row["layer"]: row for row in result["limits"]}
    body = [
        [layer_named(name).label, cell(rows.get(name), lambda row: str(row["most_frames"])),
         cell(rows.get(name), lambda row: str(row["too_many_frames"]))]
        for name in result["settings"]["layers"]
    ]  # fmt: skip
    limit, resolution = result["limits"][0]["limit_bytes"] / GIB, result["limits"][0]["resolution"]
    caption = (
        f"Measured: training steps in fresh processes that may take {limit:g} GiB, in multiples of {resolution} "
        f"frames. {_small(result['settings'])}."
    )
    return Table("Most frames before out of memory", caption, ["", "trained", "ran out of memory"], body)


def _predicted(result: dict) -> Table:
    caption = (
        f"{PREDICTED}. The most frames with which all of this fits: {STATE}, counted exactly on fake tensors; "
        f"a GB is 10⁹ bytes. {_capital(PAPER)}."
    )
    title = "Most frames of the paper's network, predicted"
    memories = result["settings"]["memories_bytes"]
    return _grid(result, "predicted", memories, title, caption, lambda row: f"{row['most_frames']:,}",
                 "memory_bytes", _gb)  # fmt: skip


def _gb(memory: int) -> str:
    return f"{memory / 1e9:g} GB"


def _widths(result: dict, frames: int) -> Table:
    rows = {"widths": [row for row in result["widths"] if row["frames"] == frames], "settings": result["settings"]}
    caption = f"{PREDICTED}: {STATE}. 32×32 pixels, attention with 8 times as many features as the base width."
    title = f"Memory against base width, {frames} frames, GiB"
    return _grid(rows, "widths", result["settings"]["widths"], title, caption,
                 lambda row: f"{row['training_bytes'] / GIB:.2f}", "base_channels")  # fmt: skip


def _equal_memory(result: dict) -> Table:
    """Widths of equal memory."""
    layer, width = REFERENCE
    columns = result["settings"]["width_frames"]
    curve_of = {
        (name, frames): [
            (row["base_channels"], row["training_bytes"])
            for row in result["widths"]
            if (row["layer"], row["frames"]) == (name, frames) and row["status"] == OK
        ]
        for name in result["settings"]["layers"] for frames in columns
    }  # fmt: skip
    body = []
    for name in result["settings"]["layers"]:
        references = [dict(curve_of[layer, frames]).get(width) for frames in columns]
        pairs = zip(columns, references, strict=True)
        cells = ["–" if memory is None else _width_at(curve_of[name, frames], memory) for frames, memory in pairs]
        body.append([layer_named(name).label, *cells])
    caption = (
        f"Base width at which training takes the memory of {layer_named(layer).label} at {width}, interpolated between "
        f"the widths that were counted. {PREDICTED}."
    )
    return Table("Width of equal memory", caption, ["frames", *map(str, columns)], body)


def _width_at(curve: list[tuple[int, int]], memory: float) -> str:
    """Where the curve (width, memory) takes so much, on straight lines in logarithms."""
    curve = sorted(curve)
    if not curve:
        return "–"
    if memory < curve[0][1]:
        return f"< {curve[0][0]}"
    if memory > curve[-1][1]:
        return f"> {curve[-1][0]}"
    for (width, low), (wider, high) in pairwise(curve):
        if low <= memory <= high:
            share = (log(memory) - log(low)) / (log(high) - log(low))
            return f"{exp(log(width) + share * (log(wider) - log(width))):.0f}"
    return str(curve[0][0])  # the only width


# -- pictures ----------------------------------------------------------------------------------------------------------


def pictures(result: dict) -> list[Picture]:
    settings, small = result["settings"], _small(result["settings"])
    layers = [layer_named(name) for name in settings["layers"]]
    legend = tuple((layer, layer.label, True) for layer in layers)

    def panel(title: str, setting: str, rows: list[dict], values, **options) -> Panel:
        return Panel(title, setting, partial(curves, layers=layers, rows=rows, values=values, **options))

    published, shown = [], legend
    main = [
        panel("Peak memory of a training step, GiB", small, result["training"], _peaks_gib),
        panel("Training, frames per second", small, result["training"], _frames_per_second),
    ]
    if result["saved"]:
        published = published_in(settings)
        saved = panel("Saved for backward, GiB", "the paper's setting: base width 112, 32×32, batch 1", result["saved"],
                      lambda row: [row["saved_bytes"] / GIB])  # fmt: skip
        main.append(Panel(saved.title, saved.setting, authors_marks(saved.draw, published, settings["frames"])))
        shown += tuple((layer_named(p.layer), p.label, False) for p in published)
    found = [
        Picture("memory", "Memory and speed of training against frames for every temporal layer", tuple(main), shown),
        Picture("memory-sampling", "Memory and speed of sampling against frames for every temporal layer", (
            panel("Peak memory of a denoising step, GiB", small, result["sampling"], _peaks_gib),
            panel("A denoising step, frames per second", small, result["sampling"], _frames_per_second),
        ), legend),
    ]  # fmt: skip
    if result["saved"]:
        excluded = "activations of backward excluded"
        frames = settings["width_frames"][-1]
        at_frames = [row for row in result["widths"] if row["frames"] == frames]
        most = panel("Most frames against memory, predicted", f"base width 112, 32×32; {excluded}",
                     _with_frames(result["predicted"]), _most_frames, x="memory_bytes", label="memory, GB",
                     tick=lambda memory: f"{memory / 1e9:g}")  # fmt: skip
        widths = panel(f"GiB against base width, {frames} frames", f"predicted, 32×32; {excluded}", at_frames,
                       lambda row: [row["training_bytes"] / GIB], x="base_channels", label="base width")  # fmt: skip
        label = "Predicted for the paper's network: most frames against memory, and memory against width"
        found.append(Picture("memory-paper", label, (most, widths), legend))
    return found


def published_in(settings: dict) -> list[Published]:
    """Those published figures that belong to a layer and a number of frames of the run."""
    return [p for p in PUBLISHED if p.layer in settings["layers"] and set(p.saved_gib) & set(settings["frames"])]


def _peaks_gib(row: dict) -> list[float]:
    return [peak / GIB for peak in row["peak_bytes"]]


def _with_frames(rows: list[dict]) -> list[dict]:
    """Without those where not even one frame fits: zero has no place on a logarithmic axis."""
    return [row for row in rows if row["status"] != OK or row["most_frames"] > 0]


def _saved(row: dict) -> list[int]:
    return [row["saved_bytes"]]


def _most_frames(row: dict) -> list[int]:
    return [row["most_frames"]]


# -- the kind ----------------------------------------------------------------------------------------------------------


def method(result: dict) -> str:
    limit = result["settings"]["memory_limit_bytes"]
    return _METHOD + (f" A process may take {limit / GIB:.1f} GiB." if limit else "")


_METHOD = (
    "Every time and every peak comes from a fresh process: imports and a warm-up of another network, then the base "
    "line of memory in use, then the network, a gated step, a step whose memory is measured, one that warms up, and "
    "the timed ones: of training on clips of the maze walk, Adam, l2 loss; of sampling by one level of DDPM from noise."
    " Peak memory is the high-water mark of resident memory (on a GPU, of torch's allocator) above the base line: "
    "weights and activations, and in training gradients and Adam's moments. Freed memory goes back at once in that "
    "step and does not count; in the timed steps the C library keeps it for reuse. The gate: a finite loss, finite "
    "gradients that reach every parameter, and, for every temporal layer of the network on its own activations, an "
    "output (and in training a gradient) that agrees with an independent float64 computation: at most twice the error"
    " of the same mathematics run eagerly in float32, plus 32 units of rounding. SDPA is torch's "
    "scaled_dot_product_attention with the network's learned position bias; on a CPU, where torch has no fused "
    "gradient for the bias, the scores are recomputed piece by piece in backward. bi-S6 recomputes in backward what "
    "it does not keep; that time is in the step. Bytes saved are storages that autograd keeps, each counted once and "
    "whole, parameters excluded, as the forward pass returns; their count on fake tensors agrees with that on real "
    "ones to the byte. Hollow marks: the authors' own code at the same setting, counting every tensor ever offered "
    "for saving, also those released at once: for attention by einsum that adds one set of scores. The search for "
    "most frames starts from the measured peaks, goes outwards in steps that double, and halves what is left."
)

_STEP, _PLACE = ("layer", "frames"), ("layer", "base_channels", "frames")
MEASURES = (
    *(
        measure
        for section in ("training", "sampling")
        for measure in (
            Measure(section, _STEP, "step_seconds", lambda row: row["step_seconds"], "s", "lower", TIME_DRIFT),
            Measure(section, _STEP, "peak_bytes", lambda row: row["peak_bytes"], "bytes", "lower", PEAK_DRIFT),
        )
    ),
    Measure("training", _STEP, "saved_bytes", _saved, "bytes", "lower", 0.0),
    Measure("modes", _STEP, "lean_over_fast", _ratios, "1", "lower", TIME_DRIFT),
    Measure("limits", ("layer", "limit_bytes"), "most_frames", _most_frames, "frames", "higher", PEAK_DRIFT),
    Measure("saved", _STEP, "saved_bytes", _saved, "bytes", "lower", 0.0),
    Measure("predicted", ("layer", "memory_bytes"), "most_frames", _most_frames, "frames", "higher", 0.0),
    Measure("widths", _PLACE, "training_bytes", lambda row: [row["training_bytes"]], "bytes", "lower", 0.0),
)
SECTIONS = tuple(dict.fromkeys(measure.section for measure in MEASURES))
KIND = Kind("memory", "Networks: memory and speed against frames", check, tables, pictures, MEASURES, method)
