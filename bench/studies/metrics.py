"""Metric validation: does a region metric select the tokens that are about to change?

The study measures two figures for each metric, with the same schedule and Euler steps for all. The first is
the captured share, measured along a dense run. In each step, the metric selects the tokens that it would keep
active in the next step. The captured share is the share of these tokens in the squared change of the denoised
estimate in the next step. Random tokens capture a share equal to their ratio; an oracle that knows the next
step captures the largest possible share. The second figure is the PSNR of runs that use the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ras_core.method.grid import TokenGrid
from ...ras_core.method.preferences import Preferences
from ...ras_core.method.selector import selector_for
from ...ras_core.models import adapter_for
from ..quality.cells import Cell
from ..quality.engine import Engine
from ..quality.methods import sampler_of
from ..quality.options import Options
from ..quality.plots import bar_plot
from ..quality.sampling import Studio
from .common import is_small, measured, publish

RATIOS = (0.5, 0.25)
SMALL_RATIOS = (0.25,)
ORACLE = "oracle"


def variants(family: str) -> dict[str, Cell]:
    """One cell for each metric; the cell's ratio is set later."""
    base = Cell(family, "paper", "euler", 28, start=4, reset_every=6)
    return {
        "std, low active (paper)": replace(base, starvation=0.1),
        "std, high active": replace(base, high_ratio=0.0, starvation=0.1),
        "l2norm, low active": replace(base, metric="l2norm", starvation=0.1),
        "random": replace(base, method="random"),
        "change": replace(base, method="change"),
    }


def run(family: str, options: Options, out: Path) -> str:
    """Run the study for one family; returns its table as Markdown."""
    measured_ratios = SMALL_RATIOS if is_small(options) else RATIOS
    cells = {
        (name, ratio): replace(cell, ratio=ratio)
        for name, cell in variants(family).items()
        for ratio in measured_ratios
    }
    rows = dict(zip(cells, measured(list(cells.values()), options, out), strict=True))
    captured = captured_shares(Engine(options).studio(family), variants(family))
    lines: list[list[Any]] = []
    for name in [*variants(family), ORACLE]:
        for ratio in RATIOS:
            row = rows.get((name, ratio), {})
            lines.append([name, ratio, captured[name, ratio], row.get("psnr"), row.get("cost_sd3")])
    groups = {
        name: {f"{ratio:.0%} active": captured[name, ratio] for ratio in RATIOS}
        for name in [*variants(family), ORACLE]
    }
    header = ["metric", "ratio", "captured", "PSNR dB", "cost"]
    labels = ("captured share of the next step's change", f"{family}: change captured by each metric")
    return publish(
        out, f"metrics_{family}", f"Region metrics, {family}", [("", header, lines)],
        lambda path: bar_plot(groups, labels, path), options,
    )  # fmt: skip


@torch.inference_mode()
def captured_shares(studio: Studio, metrics: dict[str, Cell]) -> dict[tuple[str, float], float]:
    """The captured share of each metric and of the oracle at each ratio: the mean over the steps and images
    of dense runs.
    """
    sums: dict[tuple[str, float], list[float]] = {}
    for batch in studio.batches:
        states, estimates, sigmas = dense_run(studio, batch)
        for name, cell in [*metrics.items(), (ORACLE, None)]:
            for ratio in RATIOS:
                own = None if cell is None else replace(cell, ratio=ratio, starvation=0.0)
                shares = _captured(studio, own, ratio, states, estimates, sigmas)
                sums.setdefault((name, ratio), []).extend(shares)
    return {key: sum(values) / len(values) for key, values in sums.items()}


def dense_run(studio: Studio, batch: Any) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """States x, denoised estimates D and noise levels of every step of a dense Euler run."""
    cell = Cell(studio.source.family)
    states, estimates = [], []

    def keep(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        states.append(x.float().clone())
        estimates.append(denoised.float().clone())

    sigmas = studio.sigmas(cell)
    studio.sample_batch(studio.source.model, sampler_of("euler"), sigmas, batch, 0, callback=keep)
    return states, estimates, sigmas.tolist()


def _captured(
    studio: Studio,
    cell: Cell | None,
    ratio: float,
    states: Sequence[Tensor],
    estimates: Sequence[Tensor],
    sigmas: Sequence[float],
    first: int = 4,
) -> list[float]:
    """The captured share of each step k, from step `first` - 1 on.

    The denoised estimate changes from step k to step k + 1. The captured share is the part of this squared
    change that falls on the tokens selected after step k, divided by the whole squared change.
    """
    patch = adapter_for(studio.source.network).patch_size(studio.source.network)
    grid = TokenGrid(tuple(states[0].shape[2:]), patch)
    count = round(ratio * grid.n)
    generator = torch.Generator().manual_seed(0)
    selector = selector_for(cell.config(), grid, generator, Preferences()) if cell else None
    shares = []
    for k in range(len(states) - 1):
        change = grid.pool((estimates[k + 1] - estimates[k]).square().sum(dim=1))  # (b, n)
        if selector is None:
            active = change.topk(count, dim=1).indices
        else:
            selector.observe(states[k], estimates[k], sigmas[k], None)
            active = selector.select(count, sigmas[k + 1])
        if k >= first - 1 and active is not None:
            shares.append(float((change.gather(1, active).sum(dim=1) / change.sum(dim=1)).mean()))
    return shares
