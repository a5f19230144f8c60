"""Scheduling sensitivity: do dense steps help more at the start of a run or later in it?

All cells have the same cost, since `DENSE` of their 28 steps are dense. The dense steps that are not at the
start are error resets, spread evenly over the remaining steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..quality.cells import Cell
from ..quality.options import Options
from ..quality.plots import line_plot
from .common import is_small, measured, publish

STEPS = 28
DENSE = 7
STARTS = (2, 3, 4, 5, 6, 7)  # from 2 on, since the multirate method needs 2 dense steps to measure change
SMALL_STARTS = (2, 4, 7)
RATIOS = (0.5, 0.25)
SMALL_RATIOS = (0.25,)


def spread_resets(start: int, dense: int = DENSE, steps: int = STEPS) -> tuple[int, ...]:
    """Step indices of the `dense - start` error resets, which are spread evenly over the steps from `start`
    on.
    """
    count = dense - start
    gap = (steps - start) / (count + 1)
    return tuple(start + round(gap * (i + 1)) for i in range(count))


def cells(family: str, small: bool) -> dict[tuple[str, float, int], Cell]:
    """The cells, by method, ratio and number of dense steps at the start."""
    made = {}
    for method, sampler in (("multirate", "dpmpp_2m"), ("paper", "euler")):
        for ratio in SMALL_RATIOS if small else RATIOS:
            for start in SMALL_STARTS if small else STARTS:
                base = Cell(family, method, sampler, STEPS, start=start, ratio=ratio)
                scale = 0.1 if method == "paper" else 0.0
                made[method, ratio, start] = replace(base, reset_steps=spread_resets(start), starvation=scale)
    return made


def run(family: str, options: Options, out: Path) -> str:
    """Run the study for one family; returns its table as Markdown."""
    own = cells(family, is_small(options))
    rows = measured(list(own.values()), options, out)
    lines, curves = [], {}
    for ((method, ratio, start), cell), row in zip(own.items(), rows, strict=True):
        resets = ", ".join(map(str, cell.reset_steps)) or "none"
        lines.append([method, ratio, start, resets, row["cost_sd3"], row["psnr"]])
        x, y = curves.setdefault(f"{method}, {ratio:.0%}", ([], []))
        x.append(start)
        y.append(row["psnr"])
    header = ["method", "ratio", "dense at the start", "resets at", "cost", "PSNR dB"]
    labels = (f"dense steps at the start, of {DENSE} in all", "PSNR to the converged trajectory, dB", family)
    return publish(
        out, f"start_step_{family}", f"Where {DENSE} dense steps of {STEPS} belong, {family}",
        [("", header, lines)], lambda path: line_plot(curves, labels, path), options,
    )  # fmt: skip
