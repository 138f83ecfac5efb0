"""Pieces of a self-contained HTML page: light and dark as the reader's system is, readable on a phone and on a desk."""

import html
from collections.abc import Iterable
from typing import Any

from ssmvdm.process_memory import GIB
from ssmvdm.report.tables import Table

WITHOUT_NUMBER = ("out of memory", "timeout", "gate failed", "error", "not applicable")


def table_section(table: Table, level: int = 2) -> str:
    """Heading of that level, caption, table; cells that say why there is no number stand out."""
    kinds = [" class=prose" if table.is_prose(column) else "" for column in range(len(table.header))]
    head = "".join(
        f"<th scope=col{kind}>{html.escape(cell)}</th>" for kind, cell in zip(kinds, table.header, strict=True)
    )
    body = "".join(_row(kinds, row) for row in table.rows)
    caption = f"<p>{html.escape(table.caption)}</p>" if table.caption else ""
    return (
        f"<h{level}>{html.escape(table.title)}</h{level}>{caption}"
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(kinds: list[str], row: list[str]) -> str:
    label, *cells = row
    shown = "".join(
        f"<td{' class=bad' if cell in WITHOUT_NUMBER else kind}>{html.escape(cell)}</td>"
        for kind, cell in zip(kinds[1:], cells, strict=True)
    )
    return f"<tr><th scope=row>{html.escape(label)}</th>{shown}</tr>"


def whole_page(title: str, stamp: str, sections: Iterable[str]) -> str:
    """The page. title, stamp: text; sections: HTML."""
    head = _PAGE.replace("@title@", html.escape(title)).replace("@stamp@", html.escape(stamp))
    return head.replace("@body@", "\n".join(sections))


def themed_figure(svgs: dict[str, list[str]], label: str, name: str = "") -> str:
    """Panels side by side, or below each other where the page is narrow. svgs: the panels by the name of their theme,
    of which the page shows the reader's; label: for those who cannot see the panels; name: another one for every
    figure of a page."""
    parts = []
    for theme, panels in svgs.items():
        for index, svg in enumerate(panels):
            body = svg[svg.index("<svg") :]  # without the XML prologue, which HTML does not take
            for kind in ('id="', "url(#", 'xlink:href="#'):  # several figures in one page: keep their ids apart
                body = body.replace(kind, f"{kind}{name}{theme}{index}-")
            parts.append(f'<div class="panel {theme}">{body}</div>')
    return f'<figure role="img" aria-label="{html.escape(label)}">{"".join(parts)}</figure>'


def legend(entries: Iterable[tuple[Any, str, bool]]) -> str:
    """(what has a `color` on light and on dark ground and a `marker`, label, whether its mark is filled)."""
    items = []
    for entry, label, is_filled in entries:
        shape = MARKS[entry.marker].format(fill="currentColor" if is_filled else "none")
        style = f"--on-light:{entry.color[0]};--on-dark:{entry.color[1]}"
        mark = f'<svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">{shape}</svg>'
        items.append(f'<li><span class=mark style="{style}">{mark}</span>{html.escape(label)}</li>')
    return f"<ul class=legend>{''.join(items)}</ul>"


def environment_table(environment: dict, wall_seconds: float | None) -> str:
    """Where and on what it ran, as a section, and how long if that is known."""
    rows = dict(environment)
    if wall_seconds is not None:
        rows["wall clock of the run"] = f"{wall_seconds:.0f} s"
    if environment.get("memory_bytes"):
        rows["memory_bytes"] = f"{environment['memory_bytes'] / GIB:.1f} GiB"
    body = "".join(
        f"<tr><th scope=row>{html.escape(key.replace('_bytes', '').replace('_', ' '))}</th>"
        f"<td>{html.escape(', '.join(value) if isinstance(value, list) else str(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<h2>Environment</h2><div class=scroll><table class=plain><tbody>{body}</tbody></table></div>"


MARKS = {  # matplotlib's marker -> the same as SVG
    "s": '<rect x="2" y="2" width="12" height="12" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "D": '<path d="M8 1 15 8 8 15 1 8Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "^": '<path d="M8 2 15 14H1Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "v": '<path d="M8 14 1 2H15Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "P": '<path d="M6 2H10V6H14V10H10V14H6V10H2V6H6Z" fill="{fill}" stroke="currentColor" stroke-width="1.5"/>',
    "<": '<path d="M2 8 14 1V15Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    ">": '<path d="M14 8 2 1V15Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "p": '<path d="M8 2 14 6.5 12 14H4L2 6.5Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "h": '<path d="M8 1.5 14 5V11L8 14.5 2 11V5Z" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
    "X": '<path d="M5 2 8 5 11 2 14 5 11 8 14 11 11 14 8 11 5 14 2 11 5 8 2 5Z" fill="{fill}" stroke="currentColor" '
    'stroke-width="1.5"/>',
    "o": '<circle cx="8" cy="8" r="6" fill="{fill}" stroke="currentColor" stroke-width="2"/>',
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>@title@</title>
<style>
:root { --ground: #ffffff; --ink: #1c2330; --faint: #667085; --line: #d9dee7; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12161d; --ink: #e8ecf2; --faint: #98a2b3; --line: #2b3442; --bad: #ff8a7a; }
  .light { display: none; }
  .mark { color: var(--on-dark); }
}
@media (prefers-color-scheme: light), (prefers-color-scheme: no-preference) {
  .dark { display: none; }
  .mark { color: var(--on-light); }
}
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
p { max-width: 46rem; margin: .2rem 0 .7rem; color: var(--faint); }
ul { max-width: 46rem; padding-left: 1.2rem; }
figure { margin: 1.2rem 0 .4rem; display: flex; flex-wrap: wrap; gap: .5rem; }
.panel { flex: 1 1 20rem; min-width: 0; }
.panel svg { width: 100%; height: auto; }
.legend { max-width: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; }
.legend li { display: flex; align-items: center; gap: .45rem; font-size: .9rem; }
.mark { display: inline-flex; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .plain td { text-align: left; }
th:first-child { position: sticky; left: 0; background: var(--ground); }
thead th:first-child { min-width: 0; }
.prose { text-align: left; min-width: 16rem; }
tbody th { font-weight: 500; min-width: 15rem; }
@media (max-width: 40rem) {
  th, td { padding-right: .6rem; font-size: .9rem; }
  tbody th { min-width: 7rem; }
}
small { display: block; color: var(--faint); font-size: .75rem; }
details { margin: .3rem 0; }
summary { cursor: pointer; }
.bad { color: var(--bad); }
</style>
</head>
<body>
<h1>@title@</h1>
<p>@stamp@</p>
@body@
</body>
</html>
"""
