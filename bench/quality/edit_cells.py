"""The cells that measure editing, and what their runs cost. This module needs no model and no device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import floor
from statistics import mean
from typing import Any

from ...ras_core.method.rhythm import Rhythm
from ...ras_core.models.cost import CostProfile
from .cells import Cell
from .options import digest

FAMILY = "flux_edit"
SPEEDS = (2.0, 3.0, 1.5, 2.5)
"""Cost reductions for which plans are made, the most important ones first."""

WIDTH, BLOCKS = 3072, 57
FLUX = CostProfile(
    image_weights=BLOCKS * 12 * WIDTH**2,  # qkv 3, output projection 1, MLP 8, in units of WIDTH**2
    text_weights=BLOCKS * 12 * WIDTH**2,
    joint_width=BLOCKS * WIDTH,
    final_weights=WIDTH * 64,
)
"""Flux.1 (Kontext): 19 double and 38 single blocks."""
FLUX_TOKENS, FLUX_TEXT = 64 * 64, 512
"""Image tokens of 1024 x 1024 pixels, and text rows. The reference image has as many tokens as the image."""

LEAST_SHARE, LARGEST_SHARE = 0.3, 0.95
MOST_STEPS = 60
STARTS = range(2, 8)
"""For the plans in which regional and dense steps alternate: the numbers of dense steps at the start."""
SHARES = (0.9, 0.7, 0.5)
RHYTHMS = ((0.3, 3), (0.3, 4), (0.5, 0))
"""For each other kind of plan: the part of the cost that is spent on dense steps at the start, and which of
the later steps are dense (one in so many; 0: none). Later dense steps refresh frozen reference images."""
KEPT_RHYTHMS = ((0.3, 2), (0.5, 0), (0.3, 0))
"""The same for plans whose regional steps process the reference image."""

SCHEDULER_STEPS = (18, 14, 11, 9)
AB2 = ("ab2", "ab2_unbounded")
"""The solvers of runs without RAS on the grids below: that of the pack, and the usual one."""
PLAIN_GRIDS = {"calibrated": (28, 22, 19, 16, 14, 12, 11, 10, 9), "calibrated:0.5": (19, 14, 11, 9)}
"""For each grid of runs without RAS with these solvers: the numbers of steps."""

FROZEN = ("frozen", "frozen, gpu", "frozen, forecast2", "frozen, no spread")
"""Kinds of plans whose regional steps leave out the reference image: the format of the K/V cache, if it is
not `forecast`, and whether forecast errors are not spread."""

VARIANTS = (("gpu", {}), ("forecast2", {}), ("forecast", {"spread": False}))
"""For each variant of the best plans: the format of the K/V cache, and further fields of RASConfig."""

StepCost = Callable[[float], float]
"""Cost of a step on a share of the tokens, relative to a dense step."""


@dataclass(frozen=True)
class EditCell:
    """One sampling configuration of an editing run.

    Attributes:
        cell: the sampler, the grid and the token shares.
        kept: whether regional steps process the rows of the reference image. If not, their keys and values
            are those of the last dense step, as in the pack.
    """

    cell: Cell
    kept: bool = False

    @property
    def key(self) -> str:
        return digest([asdict(self.cell), self.kept])[:12]

    @property
    def kind(self) -> str:
        """What the run tries, as in tables: a key of `edit_report.NAMES`."""
        cell = self.cell
        if cell.method == "dense":
            is_scheduled = cell.grid in ("simple", "beta")
            return cell.sampler if cell.sampler in AB2 else "schedulers" if is_scheduled else "calibrated"
        if cell.method == "exact_kv":
            return "exact"
        others = [cell.kv_cache] if cell.kv_cache != "forecast" else []
        others += [f"no {name}" for name, value in cell.extra_settings.items() if not value]
        return "kept" if self.kept else ", ".join(["frozen", *others])

    @property
    def label(self) -> str:
        return self.cell.label + (", references kept" if self.kept else "")

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> EditCell:
        """The cell of a row of results."""
        known = {name: row[name] for name in ("method", "sampler", "grid", "kv_cache", "extra")}
        shares = tuple(float(each) for each in row["shares"].split("+") if each)
        cell = replace(Cell(FAMILY, steps=int(row["steps"])), **known, shares=shares)
        return cls(cell, row["references"] == "kept")


def step_flops(
    profile: CostProfile, n_tokens: int, n_text: int, share: float, kept: bool, references: int | None = None
) -> float:
    """FLOPs of a step on a share of the tokens; the reference image has as many tokens as the image.

    Args:
        profile: the network's cost profile.
        n_tokens, n_text: image tokens, text rows.
        share: share of the tokens that the step processes; 1 for a dense step.
        kept: whether a regional step processes the rows of the reference image.
        references: rows of the reference image; None for as many as image tokens.
    """
    rows, active = n_tokens if references is None else references, round(share * n_tokens)
    if kept:
        return profile.step_flops(n_tokens + rows, active + rows, n_text)
    return replace(profile, frozen_rows=rows).step_flops(n_tokens, active, n_text)


def step_cost(kept: bool) -> StepCost:
    """The cost of a step of Flux.1 at 1024 px with one reference image."""
    dense = step_flops(FLUX, FLUX_TOKENS, FLUX_TEXT, 1.0, kept)
    return lambda share: step_flops(FLUX, FLUX_TOKENS, FLUX_TEXT, share, kept) / dense


def cost_reduction(shares: Sequence[float], default_steps: int, kept: bool) -> float:
    """FLOPs of a dense run of `default_steps` steps, divided by those of a run with these token shares, both
    for Flux.1 at 1024 px with one reference image.
    """
    return default_steps / sum(map(step_cost(kept), shares))


def plain_cells() -> list[EditCell]:
    """Runs without RAS: on the calibrated grid with the solvers AB2, and with ComfyUI's schedulers."""
    base = Cell(FAMILY)
    cells = [
        replace(base, sampler=solver, grid=grid, steps=steps)
        for solver, (grid, all_steps) in product(AB2, PLAIN_GRIDS.items())
        for steps in all_steps
    ]
    samplers = ("dpmpp_2m", "euler")
    cells += [
        replace(base, sampler=sampler, grid=grid, steps=steps)
        for grid, sampler, steps in product(("simple", "beta", "calibrated"), samplers, SCHEDULER_STEPS)
    ]
    return [EditCell(cell) for cell in cells]


def plan_cells(default_steps: int, kept: bool, speeds: Sequence[float] = SPEEDS) -> list[EditCell]:
    """Runs with RAS at these cost reductions, with the references frozen or kept."""
    cost, tried = step_cost(kept), []
    for speed in speeds:
        budget = default_steps / speed
        tried += [] if kept else alternating(budget, cost)
        for (dense, every), share in product(KEPT_RHYTHMS if kept else RHYTHMS, SHARES):
            tried.append(shares_of(budget, max(2, round(budget * dense)), share, every, cost))
    base = Cell(FAMILY, "plan", "ab2", grid="calibrated", kv_cache="forecast")
    made = [EditCell(replace(base, shares=shares), kept) for shares in tried if shares is not None]
    return list({each.key: each for each in made}.values())


def alternating(budget: float, cost: StepCost) -> list[tuple[float, ...]]:
    """The token share of every step of all runs that cost `budget` dense steps, and in which regional and
    dense steps alternate after a dense start; the last step is dense.
    """
    found = []
    for start, regional in product(STARTS, range(1, MOST_STEPS // 2)):
        each = (budget - start) / regional - 1
        if cost(LEAST_SHARE) <= each <= cost(LARGEST_SHARE):
            found.append((1.0,) * start + (_share_at(each, cost), 1.0) * regional)
    return found


def shares_of(
    budget: float, start: int, share: float, every: int, cost: StepCost
) -> tuple[float, ...] | None:
    """The token share of every step of a run that costs `budget` dense steps; None if there is none.

    Args:
        start: number of dense steps at the start.
        share: approximate share of the tokens in a regional step. The number of steps is chosen so that the
            share that meets the budget is as close to it as possible.
        every: after the start, one step in so many is dense; 0 if none is.
    """
    found: list[tuple[float, float, int]] = []
    for steps in range(start + 1, MOST_STEPS + 1):
        n_dense = Rhythm(start, share, every).shares(steps).count(1.0)
        if n_dense == steps:
            continue
        each = (budget - n_dense) / (steps - n_dense)
        if cost(LEAST_SHARE) <= each <= cost(LARGEST_SHARE):
            exact = _share_at(each, cost)
            found.append((abs(exact - share), exact, steps))
    if not found:
        return None
    _, exact, steps = min(found)
    return Rhythm(start, exact, every).shares(steps)


def _share_at(wanted: float, cost: StepCost) -> float:
    """The share of the tokens at which a regional step has this cost, rounded down."""
    low, high = 0.0, 1.0 - 1e-6
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return floor(low * 1e4) / 1e4


def variants_of(rows: Iterable[dict[str, Any]], speeds: Sequence[float] = SPEEDS) -> list[EditCell]:
    """Variants of the best plans with frozen references: the best two of each cost reduction with other
    formats of the K/V cache and without `spread`, and the best one with exact keys and values.
    """
    found = []
    for speed in speeds:
        cells = [EditCell.of_row(row) for row in best_rows(rows, "frozen", speed)[:2]]
        for each in cells:
            found += [replace(each, cell=replace(each.cell, kv_cache=k, extra=e)) for k, e in VARIANTS]
        found += [replace(each, cell=replace(each.cell, method="exact_kv")) for each in cells[:1]]
    return list({each.key: each for each in found}.values())


def best_rows(rows: Iterable[dict[str, Any]], kind: str, speed: float) -> list[dict[str, Any]]:
    """The rows of this kind that reach a cost reduction (1 % less is allowed), and are not much above it, the
    best first.
    """
    near = [row for row in rows if row["kind"] == kind and 0.99 * speed <= row["cost"] < 1.15 * speed]
    return sorted(near, key=lambda row: -row["psnr"])


def best_cells(rows: Sequence[dict[str, Any]], speeds: Sequence[float] = SPEEDS) -> list[EditCell]:
    """Runs without RAS with the solver ab2, on the better one of its grids, and the best cell of each kind at
    each cost reduction.
    """
    grid = _better_grid(rows)
    found = [
        each
        for each in plain_cells()
        if each.kind == "ab2" and each.cell.grid == grid and each.cell.steps <= 19
    ]
    kinds = (FROZEN, ("kept",), ("schedulers",), ("ab2_unbounded",))
    best = [
        max(near, key=lambda row: row["psnr"])
        for speed, some in product(speeds, kinds)
        if (near := [row for kind in some for row in best_rows(rows, kind, speed)])
    ]
    return list({each.key: each for each in (*found, *map(EditCell.of_row, best))}.values())


def _better_grid(rows: Sequence[dict[str, Any]]) -> str:
    """The grid on which runs without RAS with the solver ab2 have the higher mean PSNR."""
    common = set.intersection(*map(set, PLAIN_GRIDS.values()))
    means = {
        grid: mean(values)
        for grid in PLAIN_GRIDS
        if (values := [row["psnr"] for row in rows if _is_plain(row, grid) and int(row["steps"]) in common])
    }
    return max(means, key=means.__getitem__, default="calibrated")


def _is_plain(row: dict[str, Any], grid: str) -> bool:
    return row["kind"] == "ab2" and row["grid"] == grid
