"""The cells from which the shapes of the families' plans are chosen.

The shape of a plan says which of its steps are dense, and the share of the tokens in the others.
"""

from __future__ import annotations

from itertools import product

from ...ras_core.config import MIN_RATIO
from ...ras_core.method.plan import MIN_DENSE, PLAN_SPEEDS
from ...ras_core.method.regional_cost import MAX_SHARE, share_of
from ...ras_core.method.rhythm import Rhythm
from .baselines import dense
from .cells import Cell
from .costs import DEFAULT_STEPS
from .plan_cells import step_cost

START_PARTS = (0.25, 0.33, 0.45, 0.6)
"""Share of a run's cost that is spent on the dense steps at its start."""
SHARES = (0.4, 0.55, 0.7, 0.85)
"""Approximate token share of a regional step."""
EVERY = (0, 2)
"""Regional steps follow each other (0), or every second step is dense."""
ENDS = (0, 1)
"""Number of dense steps at the end."""


def shapes(family: str, seed: int) -> list[Cell]:
    """For each speed, plans of many shapes with the same cost, and dense runs of this cost."""
    made: dict[tuple[float, ...], None] = {}
    for speed in PLAN_SPEEDS:
        budget = DEFAULT_STEPS / float(speed.removesuffix("x"))
        for of_start, share, every, end in product(START_PARTS, SHARES, EVERY, ENDS):
            if found := _shares(budget, max(round(budget * of_start), MIN_DENSE), share, every, end):
                made[found] = None
    plans = [
        Cell(
            family, "plan", "ab2", grid="calibrated", shares=shares, kv_cache="forecast", seed=seed,
            extra={"spread": True},
        )
        for shares in made
    ]  # fmt: skip
    fewer = [dense(family, "ab2", "calibrated", steps, seed) for steps in (19, 16, 14, 12, 11, 10, 9)]
    return [*fewer, *plans]


def _shares(budget: float, start: int, share: float, every: int, end: int) -> tuple[float, ...] | None:
    """The token share of every step of a run that costs the budget, in multiples of a dense step; None if no
    share does.
    """
    between = 1 if every else 0  # dense steps for each regional one but the last
    n_regional = round((budget - start - end + between) / (step_cost(share) + between))
    if n_regional < 1 + between:
        return None
    n_between = between * (n_regional - 1)
    each = (budget - start - n_between - end) / n_regional
    if not step_cost(MIN_RATIO) <= each <= step_cost(MAX_SHARE):
        return None
    steps = start + n_regional + n_between + end
    return Rhythm(start, share_of(each, step_cost), every, end).shares(steps)
