"""Results to files: JSON, CSV, the figure, and one self-contained HTML page. All of them, or none."""

import csv
import html
import json
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure.environment import busy_warning, one_line
from benchmarks.report.page import environment_table, legend, themed_figure, whole_page
from benchmarks.report.terminal import parameters_cell, ratio_cell
from benchmarks.shapes import GIB, layer_named
from ssmvdm.errors import InputError

STEM = "memory"
CSV_FIELDS = (
    "measure", "layer", "frames", "status", "detail", "parameters",
    "step_seconds_median", "step_seconds_min", "step_seconds_max",
    "peak_bytes_median", "peak_bytes_min", "peak_bytes_max", "saved_bytes", "lean_over_fast", "gate_passed",
)  # fmt: skip
SUMMARIES = {"median": median, "min": min, "max": max}


def write_all(result: dict, folder: Path) -> Path:
    """Everything is written beside its place first and renamed last, so that an interrupted run leaves the earlier
    results whole. Returns the path of the HTML page."""
    from benchmarks.report.plots import save_all

    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        draft = Path(name)
        save_all(result, draft, STEM)
        (draft / f"{STEM}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        _write_csv(result, draft / f"{STEM}.csv")
        (draft / f"{STEM}.html").write_text(page(result), encoding="utf-8")
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    return folder / f"{STEM}.html"


def load(path: Path) -> dict:
    """A result written by `write_all`. InputError if the file cannot be read, is no JSON, or is something else."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # undecodable bytes, no JSON, or brackets without end
        raise InputError(f"{path} is not valid JSON: {error}") from error
    try:
        _check(result)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is not a result of `ssmvdm bench memory`: {error!r}") from error
    return result


def _check(result: dict) -> None:
    """Raises whatever comes first when a part that is drawn or tabulated is missing."""
    if result["schema"] != 1 or result["kind"] != "memory":
        raise ValueError(f"schema {result['schema']!r}, kind {result['kind']!r}")
    one_line(result["environment"])
    settings = result["settings"]
    if not all(isinstance(count, int) and count > 0 for count in settings["frames"]):
        raise ValueError("settings.frames")
    _ = settings["network"]["base_channels"], settings["network"]["size"], float(result["wall_seconds"])
    for name in settings["layers"]:
        layer_named(name)
    for row in result["modes"]:
        _ = layer_named(row["layer"]), row["frames"] + 1, str(row["detail"])
        if row["status"] == "ok":
            _ = ratio_cell(row)
    _ = result["modes"][0]
    for row in result["training"] + result["saved"]:
        if row["layer"] not in settings["layers"] or row["frames"] not in settings["frames"]:
            raise ValueError(f"row {row['layer']!r}, {row['frames']!r}")
        _ = str(row["status"]), str(row["detail"]), parameters_cell([row])
        if row["status"] == "ok" and row in result["training"]:
            _ = median(row["peak_bytes"]) + median(row["step_seconds"]) + row["saved_bytes"]
        elif row["status"] == "ok":
            _ = float(row["saved_bytes"])


def _write_csv(result: dict, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CSV_FIELDS, extrasaction="ignore")
        writer.writeheader()
        for measure in ("training", "modes", "saved"):
            for row in result[measure]:
                flat = row | {"measure": measure, "gate_passed": row.get("gate", {}).get("passed", "")}
                flat |= {"lean_over_fast": row.get("ratio", "")}
                for name in ("step_seconds", "peak_bytes") if measure == "training" else ():
                    if row["status"] == "ok" and name in row:
                        values = row[name]
                        flat |= {f"{name}_{key}": of(values) for key, of in SUMMARIES.items()}
                writer.writerow(flat)


def page(result: dict) -> str:
    """The report. Figures are inline; light and dark follow the reader's system."""
    network, settings, environment = result["settings"]["network"], result["settings"], result["environment"]
    setting = f"base width {network['base_channels']}, {network['size']}×{network['size']} pixels, batch 1"
    limit = settings["memory_limit_bytes"]
    sections = [
        _figures(result),
        _headline(result),
        _table("Peak memory of a training step, MiB", f"{setting}; median of the repeats", result["training"], settings,
               lambda row: f"{median(row['peak_bytes']) / 2**20:,.0f}"),
        _table("Time of a training step, s", f"{setting}; median of the repeats, least and largest below",
               result["training"], settings, _seconds_cell),
        _table("Saved for backward, MiB", f"{setting}; exact, counted in the same step", result["training"], settings,
               lambda row: f"{row['saved_bytes'] / 2**20:,.0f}"),
    ]  # fmt: skip
    compared = {"layers": settings["layers"], "frames": [result["modes"][0]["frames"]]}
    sections.append(
        _table("What lean memory costs", "time of a training step with memory “lean”, the default, over that with "
               f"“fast”, which keeps everything; in turns, {setting}", result["modes"], compared, ratio_cell)
    )  # fmt: skip
    if result["saved"]:
        sections.append(
            _table("Saved for backward, GiB", "the paper's setting: base width 112, 14 heads of 64, 16 states, 32×32 "
                   "pixels, batch 1; exact, on fake tensors", result["saved"], settings,
                   lambda row: f"{row['saved_bytes'] / GIB:.2f}")
        )  # fmt: skip
    sections += [_gates(result), _method(limit), environment_table(environment, result["wall_seconds"])]
    return whole_page("Memory and time of temporal layers against frames", one_line(environment), sections)


def _figures(result: dict) -> str:
    """The panels in both appearances; then the legend."""
    from benchmarks.report.plots import THEMES, panel_svgs, published_in

    svgs = {theme.name: panel_svgs(result, theme) for theme in THEMES}
    entries = [(layer, layer.label, True) for layer in map(layer_named, result["settings"]["layers"])]
    entries += [(layer_named(shown.layer), shown.label, False) for shown in published_in(result["settings"])]
    return themed_figure(svgs, "Memory and time against frames for every temporal layer") + legend(entries)


def _headline(result: dict) -> str:
    """One sentence per comparison with bi-S6 at the largest number of frames where both have numbers."""
    sentences = []
    good = {(row["layer"], row["frames"]): row for row in result["training"] if row["status"] == "ok"}
    for layer in map(layer_named, result["settings"]["layers"]):
        shared = [f for f in result["settings"]["frames"] if (layer.name, f) in good and ("bi-s6", f) in good]
        if layer.name == "bi-s6" or not shared:
            continue
        theirs, ours = good[layer.name, shared[-1]], good["bi-s6", shared[-1]]
        memory = median(theirs["peak_bytes"]) / median(ours["peak_bytes"])
        seconds = median(theirs["step_seconds"]) / median(ours["step_seconds"])
        sentences.append(
            f"<li><b>{html.escape(layer.label)}</b> at {shared[-1]} frames: {memory:.2f}× the memory and "
            f"{seconds:.2f}× the time of bi-S6.</li>"
        )
    if warning := busy_warning(result["environment"]):
        sentences.append(f"<li class=bad>{html.escape(warning)}</li>")
    failed = [row for row in result["training"] + result["modes"] + result["saved"] if row["status"] != "ok"]
    for row in failed:
        sentences.append(
            f"<li class=bad><b>{html.escape(layer_named(row['layer']).label)}</b> at {row['frames']} frames: "
            f"{html.escape(row['status'])} ({html.escape(row['detail'])}).</li>"
        )
    return f"<ul>{''.join(sentences)}</ul>" if sentences else ""


def _seconds_cell(row: dict) -> str:
    values = row["step_seconds"]
    return f"{median(values):.2f}<small>{min(values):.2f}-{max(values):.2f}</small>"


def _table(title: str, caption: str, rows: list[dict], settings: dict, cell) -> str:
    head = "".join(f"<th scope=col>{count}</th>" for count in settings["frames"])
    body = []
    for name in settings["layers"]:
        by_frames = {row["frames"]: row for row in rows if row["layer"] == name}
        cells = []
        for count in settings["frames"]:
            row = by_frames.get(count)
            if row is None:
                cells.append("<td>–</td>")
            elif row["status"] == "ok":
                cells.append(f"<td>{cell(row)}</td>")
            else:
                cells.append(f'<td class=bad title="{html.escape(row["detail"])}">{html.escape(row["status"])}</td>')
        label, parameters = html.escape(layer_named(name).label), parameters_cell(by_frames.values())
        body.append(f"<tr><th scope=row>{label}</th><td>{parameters}</td>{''.join(cells)}</tr>")
    return (
        f"<h2>{title}</h2><p>{caption}</p><div class=scroll><table><thead><tr><th>frames</th>"
        f"<th scope=col>parameters</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _gates(result: dict) -> str:
    """Worst check of every configuration, all checks folded below."""
    lines, passed = [], 0
    rows = [(measure, row) for measure in ("training", "modes", "saved") for row in result[measure]]
    for measure, row in rows:
        gate = row.get("gate")
        name = f"{layer_named(row['layer']).label}, {row['frames']} frames, {measure}"
        if gate is None:
            lines.append(f"<details><summary>{html.escape(name)}: not reached</summary></details>")
            continue
        passed += gate["passed"]
        verdict = "passed" if gate["passed"] else "<b class=bad>failed</b>"
        checks = "".join(
            f"<tr><td>{html.escape(check['name'])}</td><td>{_number(check['value'])}</td><td>{_number(check['bound'])}</td>"
            f"<td>{'yes' if check['passed'] else '<b class=bad>no</b>'}</td></tr>"
            for check in gate["checks"]
        )
        lines.append(
            f"<details><summary>{html.escape(name)}: {verdict}, {len(gate['checks'])} checks</summary>"
            "<div class=scroll><table><thead><tr><th>check</th><th>value</th><th>at most</th><th>passed</th></tr>"
            f"</thead><tbody>{checks}</tbody></table></div></details>"
        )
    summary = f"{passed} of {len(rows)} configurations passed. {_GATE_TEXT}"
    return f"<h2>Correctness gate</h2><p>{summary}</p>{''.join(lines)}"


def _number(value) -> str:
    return f"{value:.3g}" if isinstance(value, float | int) else html.escape(str(value))


def _method(limit: int | None) -> str:
    limit_text = f" A process may take {limit / GIB:.1f} GiB." if limit else ""
    return f"<h2>How it was measured</h2><p>{_METHOD_TEXT}{limit_text}</p>"


_GATE_TEXT = (
    "Each one needs a finite loss, finite gradients that reach every parameter, and, for every temporal layer of the "
    "network on its own activations, an output and a gradient that agree with an independent float64 computation: at "
    "most twice the error of the same mathematics run eagerly in float32, plus 32 units of rounding. Counts of "
    "saved bytes must agree with real tensors to the byte."
)
_METHOD_TEXT = (
    "Every training number comes from a fresh process: imports and a warm-up of another network, then the base "
    "line of resident memory, then the network and a gated step that warms up, then the timed steps on clips of "
    "the maze walk, Adam, l2 loss. Peak memory is the high-water mark of resident memory in a step above the base "
    "line: weights, gradients, Adam's moments and activations. Times are warm. SDPA is torch's "
    "scaled_dot_product_attention with the network's learned position bias; on a CPU, where torch has no fused "
    "gradient for the bias, the scores are recomputed piece by piece in backward. bi-S6 recomputes in backward "
    "what it does not keep; that time is in the step. Bytes saved are storages that autograd keeps, each counted "
    "once and whole, parameters excluded, as the forward pass returns. Hollow marks: the authors' own code at the same "
    "setting, counting every tensor ever offered for saving, also those released at once: for attention by einsum "
    "that adds one set of scores."
)
