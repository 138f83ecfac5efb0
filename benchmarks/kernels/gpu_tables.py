"""The GPU scan benchmark as Markdown tables and a figure."""

from pathlib import Path

from benchmarks.measure.gpu_device import one_line
from benchmarks.report.tables import grid

MODES = ("forward", "backward")
# Okabe and Ito's palette, told apart by every kind of colour vision.
COLORS = ("#007A5A", "#0072B2", "#B0568A", "#D55E00", "#B8860B", "#56B4E9", "#857A00", "#8a93a3")
MARKERS = "osD^vP<>"


def markdown(result: dict) -> str:
    settings = result["settings"]
    parts = [
        f"# Bidirectional selective scan on {result['environment']['device']}",
        one_line(result["environment"]),
        f"{settings['sequences']} sequences, {settings['channels']} channels, {settings['states']} states, two "
        f"directions, {settings['dtype']}, {settings['caches']} caches. ms: median (10th to 90th percentile) of the "
        "launches.",
    ]
    for mode in MODES:
        parts += [f"## {mode.capitalize()}", grid(["", *_heads(settings)], _rows(result, mode))]
    parts.append(
        "In brackets: time over that of "
        f"{settings['base']}, measured in turns; then, for ours, the share of the modelled floor. `*`: timed on fewer "
        "sequences and scaled up, which favours it."
    )
    if result["clocks"]:
        heads = ["read while measuring", "SM MHz", "memory MHz", "W", "°C"]
        parts += ["## Clocks", grid(heads, [_clocks(row) for row in result["clocks"]])]
    notes = result["notes"] + [
        f"{row['label']}, length {row['length']}: {row['detail']}"
        for row in result["rows"] if row["status"] != "ok" and row["mode"] == MODES[0]
    ]  # fmt: skip
    if notes:
        parts += ["## Notes", "\n".join(f"* {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _heads(settings: dict) -> list[str]:
    return [f"length {length}" for length in settings["lengths"]]


def _rows(result: dict, mode: str) -> list[list[str]]:
    cells: dict[str, dict[int, str]] = {}
    for row in result["rows"]:
        if row["mode"] == mode:
            cells.setdefault(row["label"], {})[row["length"]] = _cell(row, result["settings"]["sequences"])
    lengths = result["settings"]["lengths"]
    return [[label, *(by_length.get(length, "") for length in lengths)] for label, by_length in cells.items()]


def _cell(row: dict, sequences: int) -> str:
    if "seconds" not in row:
        return row["status"]
    star = "*" if row.get("timed_sequences", sequences) < sequences else ""
    middle, low, high = (1e3 * row[key] for key in ("seconds", "p10_seconds", "p90_seconds"))
    share = f", {100 * row['share_of_floor']:.0f} %" if "share_of_floor" in row else ""
    return f"{middle:.3g}{star} ({low:.3g} to {high:.3g}) [{row['ratio']:.3g}{share}]"


def _clocks(row: dict) -> list[str]:
    def span(field: str) -> str:
        low, high = row.get(f"{field}_min"), row.get(f"{field}_max")
        return "not read" if low is None else f"{low:.0f} to {high:.0f}"

    fields = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
    return [f"length {row['length']}", *(span(field) for field in fields)]


def save_figures(result: dict, folder: Path, stem: str) -> None:
    """<stem>-light.svg and <stem>-dark.svg: time against length, one panel per mode, with the floor of ours."""
    import matplotlib

    from benchmarks.report.plots import STYLE, THEMES

    for theme in THEMES:
        with matplotlib.rc_context(STYLE):
            _draw(result, theme).savefig(folder / f"{stem}-{theme.name}.svg", metadata={"Date": None})


def _draw(result: dict, theme):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), facecolor=theme.ground)
    for axes, mode in zip(figure.subplots(1, len(MODES)), MODES, strict=True):
        axes.set_facecolor(theme.ground)
        rows = sorted((row for row in result["rows"] if row["mode"] == mode and "seconds" in row),
                      key=lambda row: row["length"])  # fmt: skip
        for index, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
            own = [row for row in rows if row["label"] == label]
            color, style = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            lengths = [row["length"] for row in own]
            axes.plot(lengths, [1e3 * row["seconds"] for row in own], style + "-", color=color, label=label, ms=5)
            low, high = ([1e3 * row[key] for row in own] for key in ("p10_seconds", "p90_seconds"))
            axes.fill_between(lengths, low, high, color=color, alpha=0.2, lw=0)
        floors = {row["length"]: 1e3 * max(row["floors"].values()) for row in rows if "floors" in row}
        if floors:
            axes.plot(list(floors), list(floors.values()), ":", color=theme.ink, label="floor of ours (modelled)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"{mode.capitalize()}, ms", color=theme.ink, loc="left", fontsize=11)
        axes.set_xlabel("length of the sequences", color=theme.ink)
        axes.tick_params(colors=theme.faint, which="both")
        for spine in axes.spines.values():
            spine.set_color(theme.faint)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.05), ncols=3, frameon=False,
                  labelcolor=theme.ink, fontsize=8)  # fmt: skip
    figure.text(0.5, 0.015, one_line(result["environment"]), ha="center", color=theme.faint, fontsize=8)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.92, bottom=0.36, wspace=0.15)
    return figure
