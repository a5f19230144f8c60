"""Early dense steps: how many steps must be dense before the first regional one.

All cells have their error resets at the same steps, so they differ only in the number of early dense steps,
and so in cost. A cell is one sampling configuration that is measured (quality/cells.py). The last column of
the table compares each cell with dense DPM-Solver++(2M) runs of fewer steps: it gives the PSNR that such runs
have at the cell's cost, interpolated between the measured numbers of steps.

Step 0 is always dense, since nothing is cached yet. The multirate method always makes step 1 dense too,
because it needs two evaluations to measure change. So for this method, 0 and 2 early dense steps give the
same run.
"""

from __future__ import annotations

from pathlib import Path

from ..quality.cells import Cell, dense_cells
from ..quality.front import at_cost
from ..quality.options import Options
from ..quality.plots import line_plot
from ..quality.report import front_of
from .common import is_small, measured, publish

STEPS = 28
EARLY = (0, 2, 4, 6)
RESETS = (10, 16, 22)
RATIOS = (0.5, 0.25, 0.125)
SMALL_RATIOS = (0.25,)
FEWER = (28, 20, 16, 13, 10, 8)
SMALL_FEWER = (14, 9)


def cells(family: str, small: bool) -> list[Cell]:
    """Cells with each number of early dense steps, for two methods: the second-order multirate method, and
    the token selection of the RAS paper (arXiv 2502.10389).
    """
    return [
        Cell(family, method, sampler, STEPS, start=early, reset_steps=RESETS, ratio=ratio, starvation=scale)
        for method, sampler, scale in (("multirate", "dpmpp_2m", 0.0), ("paper", "euler", 0.1))
        for ratio in (SMALL_RATIOS if small else RATIOS)
        for early in EARLY
    ]


def run(family: str, options: Options, out: Path) -> str:
    """Run the study for one family; returns its table as Markdown."""
    small = is_small(options)
    own, fewer = cells(family, small), dense_cells(family, ("dpmpp_2m",), SMALL_FEWER if small else FEWER)
    rows = measured([*own, *fewer], options, out)
    front = front_of(rows[len(own) :])
    lines, curves = [], {}
    for cell, row in zip(own, rows[: len(own)], strict=True):
        lines.append(
            [
                cell.method,
                cell.ratio,
                cell.start,
                row["cost_sd3"],
                row["psnr"],
                at_cost(front, row["cost_sd3"]),
            ]
        )
        x, y = curves.setdefault(f"{cell.method}, {cell.ratio:.1%} active", ([], []))
        x.append(cell.start)
        y.append(row["psnr"])
    header = ["method", "ratio", "early dense steps", "cost", "PSNR dB", "fewer steps at that cost, dB"]
    labels = ("early dense steps", "PSNR to the converged trajectory, dB", f"{family}, {STEPS} steps")
    return publish(
        out, f"early_steps_{family}", f"Early dense steps, {family}", [("", header, lines)],
        lambda path: line_plot(curves, labels, path), options,
    )  # fmt: skip
