"""Changes the token shares of a plan so that a run with another model, or with another number of steps, costs
what the plan's speed promises.
"""

from __future__ import annotations

from .plan import MIN_DENSE, Plan
from .plan_candidates import DENSE_PART, MAX_SHARE, RegionalCost, share_of, shares_for

LEAST_FITTED = 0.4
"""Smallest token share of a regional step in a plan that is fitted to another model. The smallest share of a
measured plan (`family_plans.REGIONAL`) is 0.51."""

USUAL_SHARE = 0.7
"""Approximate token share of a regional step in runs in which only the first steps are dense."""

LARGEST_COST = 0.85
"""If a regional step with USUAL_SHARE costs more, it saves too little to be worth its error."""


def needs_fitting(plan: Plan, best: Plan, is_measured: bool) -> bool:
    """Whether the token shares of `plan`, which is `best` stretched to a run, are to be fitted.

    A family's plan is for another model. A plan measured on this model has the cost of its speed, but only
    with the number of steps at which it was measured: with another number, dense and regional steps have
    other parts of the run. A measured plan with several regional shares stays as it is.
    """
    if plan.is_plain or not is_measured:
        return not plan.is_plain
    return plan.steps != best.steps and len({share for share in best.shares if share != 1}) == 1


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
        shares: token shares of a plan for another run: dense steps and at least one regional step; all
            regional steps have the same share.
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
    """
    leaves_out_references = cost(USUAL_SHARE) < USUAL_SHARE
    each = _left_for_each(shares, budget)
    if cost(LEAST_FITTED) <= each <= cost(MAX_SHARE) and not leaves_out_references:
        return _with_share(shares, share_of(each, cost))
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
        return _with_share(shares, share_of(each, cost))
    usual = cost(USUAL_SHARE)
    if usual > LARGEST_COST:
        return None
    n_dense = max(round((budget - steps * usual) / (1 - usual)), MIN_DENSE)
    if n_dense >= steps:
        return None
    n_regional = steps - n_dense
    share = max(share_of((budget - n_dense) / n_regional, cost), LEAST_FITTED)
    return (1.0,) * n_dense + (share,) * n_regional


def _left_for_each(shares: tuple[float, ...], budget: float) -> float:
    """What the dense steps of a run leave of its budget for each of its regional steps."""
    n_dense = sum(share == 1 for share in shares)
    return (budget - n_dense) / (len(shares) - n_dense)


def _with_share(shares: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(1.0 if known == 1 else share for known in shares)
