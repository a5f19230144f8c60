"""Write the report, plots and image grids for a folder of results. This works without ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...ras_core.errors import RASError
from ..common.plotting import pyplot
from ..common.progress import say
from .cells import cell_from
from .grids import stack_strips
from .plan_report import plan_tables
from .plots import front_plot, rival_plot
from .report import Row, baselines, curves, front_of, report
from .rivals import rival_tables
from .table import Table


def conclude(out: Path, title: str = "") -> str:
    """Write report.md, the plots and the image grids into a folder of results; returns the report's text."""
    table = Table(out / "cells.csv")
    families = list(dict.fromkeys(row["family"] for row in table.rows))
    against = "\n".join(rival_tables(table.rows, family) for family in families)
    parts = [f"# {title}\n" if title else "", plan_tables(table.rows), against, report(out)]
    text = "\n".join(part for part in parts if part)
    (out / "report.md").write_text(text, encoding="utf-8")
    for family in families:
        _grid(table.rows, family, out)
    if can_plot():
        for family in families:
            front_plot(table.rows, family, out / f"front_{family}.png")
            rival_plot(table.rows, family, out / f"rivals_{family}.png")
            if any(row["fd"] is not None for row in table.rows):
                front_plot(table.rows, family, out / f"fd_{family}.png", "fd")
    return text


def can_plot() -> bool:
    """Whether plots can be drawn, which needs matplotlib; prints the reason if they cannot."""
    try:
        pyplot()
    except RASError as error:
        say(f"No plots are drawn. {error}")
        return False
    return True


def _grid(rows: Sequence[Row], family: str, out: Path) -> None:
    """Stack the image strips of the cells on Pareto fronts. The cells of one kind of method are a curve
    (`series_of`), and each curve has a Pareto front of its own.

    The curves of the fewer-steps baselines come first, then the curves of the other methods. A strip shows
    the first images of a cell; its label gives the cell, the cost reduction and the PSNR.
    """
    groups = curves(rows, family)
    strips = []
    for name in [*baselines(groups), *(n for n in groups if groups[n][0]["method"] != "dense")]:
        front = set(front_of(groups[name]))
        for row in sorted(groups[name], key=lambda row: row["cost_sd3"]):
            if (row["cost_sd3"], row["psnr"]) in front:
                label = f"{cell_from(row).label}   {row['cost_sd3']:.2f}x   {row['psnr']:.1f} dB"
                strips.append((label, out / "pictures" / f"{row['key']}.png"))
    stack_strips(strips, out / f"pictures_{family}.png")
