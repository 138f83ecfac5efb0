"""What several widths have come to: a table, Markdown, and one self-contained HTML page."""

import html

from ssmvdm.compared import layer_named
from ssmvdm.process_memory import MIB
from ssmvdm.report.environment import busy_warning, one_line
from ssmvdm.report.page import environment_table, legend, table_section, themed_figure, whole_page
from ssmvdm.report.plots import THEMES
from ssmvdm.report.tables import Table, markdown
from ssmvdm.reproduce.page import answers, warning
from ssmvdm.reproduce.plots import EQUAL_MEMORY_PANELS, panel_svgs
from ssmvdm.reproduce.tables import answers_markdown, chosen_sizes, labels_of, spread

TITLE = "Temporal layers at equal memory"


def widths_table(result: dict) -> Table:
    labels = labels_of(result)
    rows = [
        [
            f"{labels[row['layer']]}, width {row['base_channels']}",
            f"{row['parameters']:,}",
            f"{row['saved_bytes'] / MIB:.1f}",
            spread(row["values"]["held-out loss"], 4),
            spread(row["values"]["Frechet distance"], 3),
        ]
        for row in result["rows"]
    ]
    caption = (
        f"Mean ± standard deviation over {result['study']['seeds']} seeds. As many real clips have a Frechet distance "
        f"of {result['floor']:.3g} (features learnt offline: not comparable with published FVD)."
    )
    head = ["temporal layer, base width", "parameters", "kept, MiB", "held-out loss", "Frechet distance"]
    return Table("Every layer at every width", caption, head, rows)


def in_words(result: dict) -> str:
    study = result["study"]
    size = study["network"]["size"]
    return (
        f"Each layer in U-Nets of base width {', '.join(map(str, result['base_channels']))}; of one width, "
        f"{chosen_sizes(study)}. {study['steps']} optimiser steps of {study['batch']} maze walks of "
        f"{study['frames']} frames of {size}×{size} pixels, {study['seeds']} seeds, each with the same clips and noise "
        "for all. Memory is what such a step keeps for the backward pass, exact, without parameters. Between two "
        "widths a layer is taken to go straight, over the logarithm of memory. A difference counts when Student's "
        "95 % interval of its mean over the seeds leaves out zero."
    )


def widths_markdown(result: dict) -> str:
    parts = [f"# {TITLE}\n\n{one_line(result['environment'])}\n\n{in_words(result)}\n"]
    parts += [answers_markdown(told["question"], told["sentences"]) for told in result["conclusions"]]
    if words := busy_warning(result["environment"]):
        parts.append(f"{words}\n")
    return "\n".join([*parts, markdown(widths_table(result))])


def widths_page(result: dict) -> str:
    svgs = {theme.name: panel_svgs(result, theme, EQUAL_MEMORY_PANELS) for theme in THEMES}
    layers = [layer_named(name) for name in result["study"]["contenders"]]
    sections = [
        f"<p>{html.escape(in_words(result))}</p>",
        *(answers(told["question"], told["sentences"]) for told in result["conclusions"]),
        warning(result),
        themed_figure(svgs, "Held-out loss and Frechet distance of every layer against the memory it keeps"),
        legend((layer, layer.label, True) for layer in layers),
        "<p>A mark for every width, the mean over the seeds; bands reach from the least to the largest.</p>",
        table_section(widths_table(result)),
        "<p>Learning curves and samples of each width are in the folders beside this page.</p>",
        environment_table(result["environment"], result["wall_seconds"]),
    ]
    return whole_page(TITLE, one_line(result["environment"]), sections)
