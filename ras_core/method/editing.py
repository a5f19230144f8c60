"""The token shares of runs with reference images, whose rows only dense steps process.

The network modulates these rows by the noise level, so the keys and values that a regional step uses for them
become outdated with every step. Therefore no two regional steps follow each other, and the last step is
dense. On a trained editing model, runs in which only the first steps are dense came to 25 dB at 2x, 14 dB
less than runs in which dense and regional steps alternate (docs/quality.md, Editing).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..config import MIN_RATIO
from .plan import MIN_DENSE
from .regional_cost import LARGEST_COST, LEAST_FITTED, MAX_SHARE, RegionalCost, share_of

START_PART, MOST_START = 0.25, 4
"""Share of a run's cost that is spent on the dense steps at its start, and their largest number. At 1.5x of
28 steps, a start of 4 steps was 0.3 to 0.9 dB better than starts of 5 to 7
(bench/results/2026-11-28-h100/edit)."""

SHARE = 0.65
"""Approximate token share of a regional step."""

NEAR = 0.05
"""The cost of a run may differ from its budget by this fraction of the budget."""


def uses_outdated(is_regional: Sequence[bool]) -> bool:
    """Whether a run uses outdated reference images: whether any regional step follows another."""
    return any(map(all, pairwise(is_regional)))


def alternating_edit(
    budget: float, cost: RegionalCost, start_part: float = START_PART
) -> tuple[float, ...] | None:
    """The token share of every step of a run that costs about the budget; None if there is no such run.

    Args:
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost.
        start_part: share of the budget that is spent on the dense steps at the start, if these are not more
            than MOST_START.
    """
    start = max(min(round(budget * start_part), MOST_START), MIN_DENSE)
    n_regional = round((budget - start) / (1 + cost(SHARE)))
    if n_regional < 1 or cost(SHARE) > LARGEST_COST:
        return None
    if start + 2 * n_regional <= budget:
        return None  # a dense run of this cost has as many steps
    wanted = (budget - start) / n_regional - 1
    each = min(max(wanted, cost(MIN_RATIO)), cost(MAX_SHARE))
    if abs(each - wanted) * n_regional > NEAR * budget:
        return None
    return (1.0,) * start + (share_of(each, cost), 1.0) * n_regional


def alternating_edit_of(steps: int, budget: float, cost: RegionalCost) -> tuple[float, ...]:
    """As `alternating_edit`, for a given number of steps. The run costs more than the budget if every second
    step with a share of LEAST_FITTED still costs more, and less if even one regional step does.
    """
    most = max((steps - MIN_DENSE) // 2, 0)
    n_regional = min(max(round((steps - budget) / (1 - cost(SHARE))), 0), most)
    if n_regional == 0 or cost(SHARE) > LARGEST_COST:
        return (1.0,) * steps
    each = (budget - (steps - n_regional)) / n_regional
    share = min(max(share_of(each, cost), LEAST_FITTED), MAX_SHARE)
    return (1.0,) * (steps - 2 * n_regional) + (share, 1.0) * n_regional
