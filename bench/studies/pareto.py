"""The Pareto curve: PSNR over cost for every method, and how much multirate gains over runs with fewer
steps.
"""

from __future__ import annotations

from pathlib import Path

from ..quality.cells import Cell, dense_cells
from ..quality.options import Options
from ..quality.plots import front_plot
from ..quality.presets import BASELINE_SAMPLERS, front, multirate, regional
from ..quality.report import curves, gains, points
from .common import is_small, measured, publish

SMALL_STEPS = (20, 14, 11, 8)
SMALL_MULTIRATE = (
    (28, 4, 6, 0.5, 2),
    (20, 4, 4, 0.5, 2),
    (20, 4, 4, 0.25, 2),
    (14, 4, 3, 0.25, 1),
    (14, 4, 4, 0.25, 1),
)


def small_cells(family: str) -> list[Cell]:
    """A small number of cells, which is still enough to draw a curve for every method."""
    cells = dense_cells(family, BASELINE_SAMPLERS, SMALL_STEPS)
    cells += [multirate(family, *settings) for settings in SMALL_MULTIRATE]
    for method in ("random", "paper"):
        cells += [regional(family, method, *settings, 0) for settings in ((20, 4, 4, 0.5), (14, 4, 4, 0.25))]
    return cells


def run(family: str, options: Options, out: Path) -> str:
    """Run the study for one family; returns its tables as Markdown."""
    own = small_cells(family) if is_small(options) else front(family, 0)
    rows = measured(own, options, out)
    lines = [
        [name, *point] for name, cells in curves(rows, family).items() for point in sorted(points(cells))
    ]
    steps = [
        [f"{g.cost:g}x", g.multirate, g.baseline, g.name, g.gain, g.wanted, g.verdict, g.setting]
        for g in gains(rows, family)
    ]
    tables = [
        (
            "Gain over the best of the fewer-steps baselines:",
            ["cost", "multirate dB", "fewer steps dB", "by", "gain dB", "wanted", "reached", "setting"],
            steps,
        ),
        ("All points:", ["curve", "cost", "PSNR dB"], lines),
    ]
    return publish(
        out, f"pareto_{family}", f"Quality over cost, {family}", tables,
        lambda path: front_plot(rows, family, path), options,
    )  # fmt: skip
