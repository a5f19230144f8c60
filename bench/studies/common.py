"""Functions that the studies share: measure cells, and write tables and plots."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..quality.cells import Cell
from ..quality.conclude import can_plot
from ..quality.options import Options
from ..quality.report import Row
from ..quality.sweep import sweep, write_description
from ..quality.table import markdown

FEW = 32
"""With fewer prompts than this, a study measures fewer settings, so that it is fast enough on a CPU."""


def is_small(options: Options) -> bool:
    """Whether there are so few prompts that the study is a quick look rather than a measurement."""
    return len(options.prompts) < FEW


def measured(cells: Sequence[Cell], options: Options, out: Path) -> list[Row]:
    """Measure these cells; returns their rows in the same order. Cells that the table in the folder `out`
    already contains are not measured again.
    """
    table = sweep(cells, options, out)
    rows = {row["key"]: row for row in table.rows}
    return [rows[cell.key] for cell in cells]


def publish(
    out: Path,
    name: str,
    title: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]],
    plot: Callable[[Path], None],
    options: Options,
) -> str:
    """Write tables as CSV and Markdown, and the plot if matplotlib is installed.

    Args:
        out: folder for the files.
        name: base name of the files, without a suffix.
        title: heading of the report.
        tables: caption, header and rows of each table.
        plot: function that draws the plot into a file.
        options: options of the study, which are written to description.json.

    Returns:
        The Markdown text.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_description(out, options)
    parts = [f"# {title}\n"]
    for caption, header, rows in tables:
        parts.append((f"{caption}\n\n" if caption else "") + markdown(header, rows))
        suffix = "" if len(tables) == 1 else f"_{len(parts) - 1}"
        with (out / f"{name}{suffix}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    text = "\n".join(parts)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    if can_plot():
        plot(out / f"{name}.png")
    return text
