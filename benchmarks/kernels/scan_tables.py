"""The scan benchmark as Markdown tables."""

from benchmarks.measure.environment import busy_warning, one_line

MODES = ("forward", "forward+backward")


def markdown(result: dict) -> str:
    settings = result["settings"]
    rate = result["exponentials_per_second"]
    parts = [
        "# Bidirectional selective scan on the CPU",
        " ".join(filter(None, [one_line(result["environment"]), busy_warning(result["environment"])])),
        f"{settings['channels']} channels, {settings['states']} states, two directions, {settings['dtypes'][0]}, "
        f"{settings['base_layout']}; medians of interleaved runs, warm"
        + (" (freed memory stays with the process, in large pages)" if settings["keeps_freed_memory"] else "")
        + ". Ratios are theirs / ours."
        + (f" Vector exp2 alone: {rate / 1e9:.1f} G/s." if rate else ""),
        "## Rivals",
        table(["rival", *_heads(result)], _rival_rows(result)),
        "`*`: timed on fewer sequences than ours and scaled up.",
        "## Ours",
        table(["layout, dtype", *_heads(result)], _our_rows(result)),
        "ms; then the ratio to the base layout and type; then the share of the operation floor (of backward alone in "
        "the second mode).",
    ]
    if result["scaling"]:
        parts += ["## Threads", table(["speed-up over one count", *_heads(result)], _scaling_rows(result))]
    if s4d := _s4d_rows(result):
        parts += [
            "## S4D by scan and by FFT",
            table(["S4D, two directions", *_heads(result)], s4d),
            "The published form convolves by FFT of twice the length; the scan walks the recurrence of the same layer.",
        ]
    parts += ["## Peak memory of forward and backward above the inputs", _memory_table(result)]
    failures = [row for row in result["ours"] + result["rivals"] if row["status"] != "ok" and row["mode"] == "forward"]
    if failures:
        parts += ["## Failed gates"]
        parts += [f"* {row['name']}, {row['sequences']} x {row['length']}: {row['detail']}" for row in failures]
    return "\n\n".join(parts) + "\n"


def _keys(result: dict) -> list[tuple[int, int, str]]:
    """Columns: (sequences, length, mode) in the order of measurement, modes together."""
    shapes = dict.fromkeys((row["sequences"], row["length"]) for row in result["ours"])
    return [(*shape, mode) for mode in MODES for shape in shapes]


def _heads(result: dict) -> list[str]:
    short = {"forward": "fwd", "forward+backward": "fwd+bwd"}
    return [f"{short[mode]} {sequences}x{length}" for sequences, length, mode in _keys(result)]


def _grouped(rows: list[dict]) -> dict[str, dict]:
    """name -> (sequences, length, mode) -> row."""
    groups: dict[str, dict] = {}
    for row in rows:
        groups.setdefault(row["name"], {})[row["sequences"], row["length"], row["mode"]] = row
    return groups


def _rival_rows(result: dict) -> list[list[str]]:
    table = []
    for group in _grouped(result["rivals"]).values():
        cells = [next(iter(group.values()))["label"]]
        for key in _keys(result):
            row = group[key]
            star = "*" if row["timed_sequences"] < row["sequences"] else ""
            cells.append(f"{row['ratio']:.3g}{star}" if "ratio" in row else row["status"])
        table.append(cells)
    return table


def _our_rows(result: dict) -> list[list[str]]:
    table = []
    for group in _grouped(result["ours"]).values():
        first = next(iter(group.values()))
        cells = [f"{first['layout']}, {first['dtype']}"]
        for key in _keys(result):
            row = group[key]
            if "seconds" not in row:
                cells.append(row["status"])
                continue
            share = row.get("share_of_floor", row.get("share_of_floor_of_backward"))
            tail = "" if share is None else f" · {100 * share:.0f} %"
            cells.append(f"{1e3 * row['seconds']:.2f} · {row.get('ratio', float('nan')):.2f}{tail}")
        table.append(cells)
    return table


def _scaling_rows(result: dict) -> list[list[str]]:
    by_key = {(row["sequences"], row["length"], row["mode"]): row["speedup"] for row in result["scaling"]}
    counts = list(next(iter(by_key.values())))
    return [
        [f"{counts[0]} to {count} threads", *(f"{by_key[key][count]:.2f}" for key in _keys(result))]
        for count in counts[1:]
    ]


def _s4d_rows(result: dict) -> list[list[str]]:
    groups = _grouped(result["rivals"])
    if "s4d-fft" not in groups or "s4d-scan" not in groups:
        return []

    def ratio(key: tuple[int, int, str]) -> str:
        fft, scan = (groups[name][key].get("seconds") for name in ("s4d-fft", "s4d-scan"))
        return f"{fft / scan:.3g}" if fft and scan else "not measured"

    return [["time by FFT / time by scan", *(ratio(key) for key in _keys(result))]]


MEMORY_LABELS = {"ours": "selective scan", "s4d-scan": "S4D by scan", "s4d-fft": "S4D by FFT"}


def _memory_table(result: dict) -> str:
    """One line per candidate, one column per length, in tensors of (batch, channels, length)."""
    lengths = list(dict.fromkeys(row["length"] for row in result["memory"]))
    cells = {(row["candidate"], row["length"]): f"{row['tensors']:.2f}" if "tensors" in row
             else f"{row['status']}: {row['detail']}" for row in result["memory"]}  # fmt: skip
    names = [name for name in MEMORY_LABELS if (name, lengths[0]) in cells]
    rows = [[MEMORY_LABELS[name], *(cells[name, length] for length in lengths)] for name in names]
    return table(["tensors of (batch, channels, length)", *(f"length {length}" for length in lengths)], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
