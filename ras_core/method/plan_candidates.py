"""Candidates for runs with regional steps at a given cost: each is a list of the token share at each step."""

from __future__ import annotations

from collections.abc import Callable

from ..config import MIN_RATIO
from .plan import MIN_DENSE, PlanSampler

RegionalCost = Callable[[float], float]
"""Cost of a step on a share of the tokens, in multiples of the cost of a dense step."""

MAX_SHARE = 0.95
"""Largest share of a regional step. Above it, a regional step saves less than its overhead costs."""

LEAST_FITTED = 0.4
"""Smallest regional share of a plan that is fitted to another model. The least that was measured is 0.59."""

DENSE_PART = 0.45
"""Part of a run's cost that goes into dense steps, if the number of steps is given."""

# Share of the tokens in a regional step, and part of the run's cost for dense steps. On front-loaded grids
# shares of 0.5 to 0.8 did best; a late start keeps the part in which the whole image changes dense.
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


def shares_of_steps(steps: int, speed: float, cost: RegionalCost) -> tuple[float, ...]:
    """The shares with which a given number of steps costs as much as steps / speed dense ones; the smallest
    possible shares if even these cost more.

    Args:
        steps: number of steps of the run, which is kept.
        speed: wanted speed-up over as many dense steps.
        cost: cost of a regional step, increasing with its share.
    """
    budget = steps / speed
    n_dense = min(max(round(budget * DENSE_PART), MIN_DENSE), steps)
    n_regional = steps - n_dense
    if n_regional == 0:
        return (1.0,) * steps
    return (1.0,) * n_dense + (_share_of((budget - n_dense) / n_regional, cost),) * n_regional


def fitted(shares: tuple[float, ...], budget: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """The same steps with the share of regional steps changed so that the run costs the budget; None if that
    takes a share outside the usual range, such as with large reference images.

    Args:
        shares: shares of a plan for another model: dense steps, and at least one regional step, all of one
            share.
        budget: cost of the run, in dense steps.
        cost: cost of a regional step, increasing with its share.
    """
    n_dense = sum(share == 1 for share in shares)
    wanted = (budget - n_dense) / (len(shares) - n_dense)
    if not cost(LEAST_FITTED) <= wanted <= cost(MAX_SHARE):
        return None
    share = _share_of(wanted, cost)
    return tuple(1.0 if each == 1 else share for each in shares)


def reached_speed(shares: tuple[float, ...], cost: RegionalCost) -> float:
    """How much faster steps of these shares are than dense ones."""
    return len(shares) / sum(1.0 if share == 1 else cost(share) for share in shares)


def _share_of(wanted: float, cost: RegionalCost) -> float:
    """The share at which a step has this cost, by bisection."""
    low, high = MIN_RATIO, MAX_SHARE
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return round((low + high) / 2, 4)
