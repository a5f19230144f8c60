"""Candidates for runs with regional steps at a given cost: their share of tokens at each step."""

from __future__ import annotations

from collections.abc import Callable

from ..config import MIN_RATIO
from .plan import PlanSampler

RegionalCost = Callable[[float], float]
"""Cost of a step on a share of the tokens, in dense steps."""

MIN_DENSE = 2
"""Minimum number of dense steps at the start: the selection compares two estimates."""

MAX_SHARE = 0.95
"""Largest share of a regional step. Above it, a regional step saves less than its overhead costs."""

# Share of the tokens in regional steps, and part of the cost that is spent on dense steps at the start. On
# front-loaded grids shares of 0.5 to 0.8 gave the best results. If regional steps start late, the part of the
# run in which the whole image changes stays dense.
TRIED: dict[PlanSampler, tuple[tuple[float, float], ...]] = {
    "dpmpp_2m": ((0.7, 0.4), (0.5, 0.45), (0.7, 0.6)),
    "euler": ((0.7, 0.4), (0.5, 0.45)),
}


def candidates(sampler: PlanSampler, budget: float, cost: RegionalCost) -> list[tuple[float, ...]]:
    """The share of tokens at each step, for each candidate at this cost.

    Args:
        sampler: the sampler of the run.
        budget: cost of the run, in dense steps.
        cost: cost of a regional step by its share.
    """
    tried = (shares_for(budget, share, dense, cost) for share, dense in TRIED[sampler])
    return [shares for shares in tried if shares is not None]


def shares_for(budget: float, share: float, dense: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """The shares of a run that starts with dense steps and continues with regional ones; None if no such run
    meets the budget.

    Args:
        budget: cost of the run, in dense steps.
        share: approximate share of the tokens in a regional step; adjusted to meet the budget exactly.
        dense: part of the budget for dense steps.
        cost: cost of a regional step, increasing with its share.
    """
    n_dense = max(round(budget * dense), MIN_DENSE)
    rest = budget - n_dense
    n_regional = round(rest / cost(share)) if rest > 0 else 0
    if n_regional < 1 or not cost(MIN_RATIO) <= rest / n_regional <= cost(MAX_SHARE):
        return None
    return (1.0,) * n_dense + (_share_of(rest / n_regional, cost),) * n_regional


def _share_of(wanted: float, cost: RegionalCost) -> float:
    """The share at which a step has this cost, by bisection."""
    low, high = MIN_RATIO, MAX_SHARE
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return round((low + high) / 2, 4)
