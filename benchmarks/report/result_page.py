"""The page of one or several results: contents, pictures, tables, gates, method, environment. Needs nothing else."""

import html

from benchmarks.report.kinds import Kind, about, all_tables, kind_named
from benchmarks.report.pictures import Picture, panel_svgs
from ssmvdm.report.environment import busy_warning, one_line
from ssmvdm.report.page import environment_table, legend, table_section, themed_figure, whole_page
from ssmvdm.report.plots import THEMES
from ssmvdm.report.tables import Table

TITLE = "Temporal layers of video diffusion, measured"


def result_page(results: list[dict], changes: dict[str, Table]) -> str:
    """changes: comparisons with earlier results by kind."""
    sections, contents = [], []
    for result in results:
        kind = kind_named(result["kind"])
        body = [_picture(kind, index, picture) for index, picture in enumerate(kind.pictures(result))]
        change = changes.get(kind.name)
        tables = [*all_tables(kind, result), *([change] if change else [])]
        for index, table in enumerate(tables):
            body.append(f'<div id="{kind.name}-{index}">{table_section(table, 3)}</div>')
        body += [_gates(kind, result), f"<h3>How it was measured</h3><p>{html.escape(kind.method(result))}</p>"]
        warning = busy_warning(result["environment"])
        head = f"<h2>{html.escape(kind.title)}</h2>" + (f"<p class=bad>{html.escape(warning)}</p>" if warning else "")
        sections.append(f'<section id="{kind.name}">{head}{"".join(body)}</section>')
        contents.append(_contents(kind, tables))
    environments = {one_line(result["environment"]): result["environment"] for result in results}
    seconds = dict.fromkeys(environments, 0.0)
    for result in results:
        seconds[one_line(result["environment"])] += result["wall_seconds"]
    sections += [environment_table(environment, seconds[line]) for line, environment in environments.items()]
    stamp = " · ".join(environments)
    return whole_page(TITLE, stamp, [f"<nav>{''.join(contents)}</nav>", *sections])


def _contents(kind: Kind, tables: list[Table]) -> str:
    """Links to the kind and, folded, to its tables."""
    links = "".join(
        f'<li><a href="#{kind.name}-{index}">{html.escape(table.title)}</a></li>' for index, table in enumerate(tables)
    )
    return (
        f'<details><summary><a href="#{kind.name}">{html.escape(kind.title)}</a>: {len(tables)} tables</summary>'
        f"<ul>{links}</ul></details>"
    )


def _picture(kind: Kind, index: int, picture: Picture) -> str:
    svgs = {theme.name: panel_svgs(picture, theme) for theme in THEMES}
    figure = themed_figure(svgs, picture.label, f"{kind.name}{index}") + legend(picture.legend)
    return f"<h3>{html.escape(picture.label)}</h3>{figure}"


def _gates(kind: Kind, result: dict) -> str:
    """The check that came nearest to its bound of every row that has a gate, folded."""
    rows, passed = [], 0
    for section, keys in kind.sections().items():
        for row in result[section]:
            gate = row.get("gate")
            if not gate or not gate["checks"]:
                continue
            passed += gate["passed"]
            nearest = max(gate["checks"], key=_nearness)
            verdict = "passed" if gate["passed"] else "gate failed"
            shown = [f"{len(gate['checks'])}", nearest["name"], _number(nearest["value"]), _number(nearest["bound"])]
            rows.append([f"{section}: {about(row, keys)}", verdict, *shown])
    header = ["row", "gate", "checks", "nearest to its bound", "value", "at most"]
    caption = f"{passed} of {len(rows)} rows that reached their gate passed it; what did not has no numbers."
    table = table_section(Table("Gates", "", header, rows), 4)
    return f"<details><summary>Correctness gate: {caption}</summary>{table}</details>"


def _nearness(check: dict) -> tuple[bool, float]:
    """Failed checks first; what is exact by its share of nothing."""
    value = check["value"]
    share = value / check["bound"] if isinstance(value, float | int) and check["bound"] else 0.0
    return not check["passed"], share


def _number(value) -> str:
    return f"{value:.3g}" if isinstance(value, float | int) else str(value)
