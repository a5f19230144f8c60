"""Candidates for plans with regional steps at a given cost of the run: each candidate is the token share of
every step.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config import MIN_RATIO
from .plan import MIN_DENSE
from .rhythm import Rhythm

RegionalCost = Callable[[float], float]
"""A function from the token share of a regional step to the step's cost, in multiples of a dense step's
cost."""

MAX_SHARE = 0.95
"""Largest token share of a regional step. With a larger share, a regional step saves less than its
overhead."""

LEAST_FITTED = 0.4
"""Smallest token share of a regional step in a plan that is fitted to another model. The smallest share of a
measured plan (`family_plans.REGIONAL`) is 0.51."""

USUAL_SHARE = 0.7
"""Approximate token share of a regional step in runs in which only the first steps are dense."""

LARGEST_COST = 0.85
"""If a regional step with USUAL_SHARE costs more, it saves too little to be worth its error."""

DENSE_PART = 0.45
"""Share of a run's cost that dense steps have in `shares_of_steps`, where the number of steps is given."""

# For each candidate without later dense steps: token share of a regional step, and share of the run's cost
# that dense steps have. Regional steps start late, so that the first part of a run, in which the whole image
# changes, is dense.
CONSTANT = ((0.7, 0.4), (0.7, 0.55))
# The same for a candidate whose regional and dense steps alternate after the start.
ALTERNATING = (0.55, 0.28)


def candidates(budget: float, cost: RegionalCost) -> list[tuple[float, ...]]:
    """The candidates for a run of this cost: for each candidate, the token share of every step.

    Args:
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost, in the same unit.
    """
    tried = [shares_for(budget, share, dense, cost) for share, dense in CONSTANT]
    tried.append(alternating(budget, *ALTERNATING, cost))
    return [shares for shares in tried if shares is not None]


def shares_for(budget: float, share: float, dense: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """The token share of every step of a run that starts with dense steps and continues with regional ones;
    None if no such run meets the budget.

    Args:
        budget: cost of the run, in multiples of the cost of a dense step.
        share: approximate token share of a regional step; it is adjusted so that the run costs the budget.
        dense: share of the budget that is spent on dense steps, approximately.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
    """
    n_dense = max(round(budget * dense), MIN_DENSE)
    rest = budget - n_dense
    n_regional = round(rest / cost(share)) if rest > 0 else 0
    if n_regional < 1 or not cost(MIN_RATIO) <= rest / n_regional <= cost(MAX_SHARE):
        return None
    return (1.0,) * n_dense + (_share_of(rest / n_regional, cost),) * n_regional


def alternating(budget: float, share: float, dense: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """As `shares_for`, but after the dense steps at the start, regional and dense steps alternate; the last
    step is regional. `dense` is the share of the budget that is spent on the start.
    """
    start = max(round(budget * dense), MIN_DENSE)
    n_regional = round((budget - start + 1) / (1 + cost(share)))
    rest = budget - start - (n_regional - 1)
    if n_regional < 1 or not cost(MIN_RATIO) <= rest / n_regional <= cost(MAX_SHARE):
        return None
    return Rhythm(start, _share_of(rest / n_regional, cost), every=2).shares(start + 2 * n_regional - 1)


def shares_of_steps(steps: int, speed: float, cost: RegionalCost) -> tuple[float, ...]:
    """The token share of every step of a run of `steps` steps that costs as much as steps / speed dense
    steps. If even the smallest possible shares cost more than that, the result has the smallest shares.

    Args:
        steps: number of steps of the run, dense and regional.
        speed: desired speed-up over a run of `steps` dense steps.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
    """
    budget = steps / speed
    n_dense = min(max(round(budget * DENSE_PART), MIN_DENSE), steps)
    n_regional = steps - n_dense
    if n_regional == 0:
        return (1.0,) * steps
    return (1.0,) * n_dense + (_share_of((budget - n_dense) / n_regional, cost),) * n_regional


def fitted(shares: tuple[float, ...], budget: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """The same dense and regional steps, with the token share of the regional steps changed so that the cost
    of the run equals the budget.

    In two cases, the result has another form: only the first steps are dense, and each of the others has a
    share of about USUAL_SHARE. First, the share would have to be below LEAST_FITTED, for example because the
    text has many rows. Second, a regional step costs less than its share of the tokens, because it leaves out
    the rows of reference images; dense steps are then expensive. The result is None if no share up to
    MAX_SHARE, and in the other form from LEAST_FITTED on, meets the budget, or if regional steps save too
    little.

    Args:
        shares: token shares of a plan for another model: dense steps and at least one regional step; all
            regional steps have the same share.
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
    """
    leaves_out_references = cost(USUAL_SHARE) < USUAL_SHARE
    each = _left_for_each(shares, budget)
    if cost(LEAST_FITTED) <= each <= cost(MAX_SHARE) and not leaves_out_references:
        return _with_share(shares, _share_of(each, cost))
    if (each > cost(MAX_SHARE) and not leaves_out_references) or cost(USUAL_SHARE) > LARGEST_COST:
        return None
    other = shares_for(budget, USUAL_SHARE, DENSE_PART, cost)
    return other if other and min(other) >= LEAST_FITTED else None


def fitted_steps(shares: tuple[float, ...], budget: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """As `fitted`, but with the same number of steps, for noise levels that are already made. If the share
    would not be between LEAST_FITTED and MAX_SHARE, only the first steps are dense: as many as leave about
    USUAL_SHARE to the regional steps. The run costs more than the budget if even LEAST_FITTED does.
    """
    each, steps = _left_for_each(shares, budget), len(shares)
    if cost(LEAST_FITTED) <= each <= cost(MAX_SHARE):
        return _with_share(shares, _share_of(each, cost))
    usual = cost(USUAL_SHARE)
    if usual > LARGEST_COST:
        return None
    n_dense = max(round((budget - steps * usual) / (1 - usual)), MIN_DENSE)
    if n_dense >= steps:
        return None
    n_regional = steps - n_dense
    share = max(_share_of((budget - n_dense) / n_regional, cost), LEAST_FITTED)
    return (1.0,) * n_dense + (share,) * n_regional


def _left_for_each(shares: tuple[float, ...], budget: float) -> float:
    """What the dense steps of a run leave of its budget for each of its regional steps."""
    n_dense = sum(share == 1 for share in shares)
    return (budget - n_dense) / (len(shares) - n_dense)


def _with_share(shares: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(1.0 if known == 1 else share for known in shares)


def reached_speed(shares: tuple[float, ...], cost: RegionalCost) -> float:
    """The speed-up of a run with these token shares over a run of equally many dense steps."""
    return len(shares) / sum(1.0 if share == 1 else cost(share) for share in shares)


def _share_of(wanted: float, cost: RegionalCost) -> float:
    """The token share at which a regional step has the cost `wanted`, found by bisection."""
    low, high = MIN_RATIO, MAX_SHARE
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return round((low + high) / 2, 4)
