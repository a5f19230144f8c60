"""Changes the token shares of a plan so that a run with another model, or with another number of steps, costs
what the plan's speed promises.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import MIN_RATIO
from .editing import alternating_edit, alternating_edit_of, uses_outdated
from .plan import MIN_DENSE, Plan
from .plan_candidates import DENSE_END, DENSE_PART, shares_for
from .regional_cost import (
    LARGEST_COST,
    LEAST_FITTED,
    MAX_SHARE,
    USUAL_SHARE,
    RegionalCost,
    leaves_out_references,
    share_of,
)


def fitted_plan(plan: Plan, best: Plan, budget: float, cost: RegionalCost, is_measured: bool) -> Plan | None:
    """A plan with token shares with which the run costs the budget; None if there are none.

    Args:
        plan: `best`, stretched to the run.
        best: the plan of the run's speed.
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
        is_measured: whether the plan was measured on the run's model. It then keeps its dense and regional
            steps, and all its shares if the run has as many steps as were measured.
    """
    if _stays_plain(plan, cost, is_measured):
        return plan
    if is_measured and not _uses_outdated(plan, cost):
        return _refitted(plan, best, budget, cost)
    shares = fitted(plan.shares, budget, cost)
    return None if shares is None else replace(plan, shares=shares)


def fitted_to_levels(plan: Plan, best: Plan, budget: float, cost: RegionalCost, is_measured: bool) -> Plan:
    """As `fitted_plan`, with the same number of steps; all of them are dense if no shares cost the budget."""
    if _stays_plain(plan, cost, is_measured):
        return plan
    if is_measured and not _uses_outdated(plan, cost):
        return _refitted(plan, best, budget, cost)
    return replace(plan, shares=fitted_steps(plan.shares, budget, cost) or (1.0,) * plan.steps)


def _stays_plain(plan: Plan, cost: RegionalCost, is_measured: bool) -> bool:
    """Whether a run keeps a plan without regional steps. A plan that was not measured on the run's model does
    not know of reference images, with which regional steps save much more.
    """
    return plan.is_plain and (is_measured or not leaves_out_references(cost))


def _uses_outdated(plan: Plan, cost: RegionalCost) -> bool:
    """Whether a plan that was measured without reference images would use outdated ones (see `editing`)."""
    return leaves_out_references(cost) and uses_outdated([share < 1 for share in plan.shares])


def _refitted(plan: Plan, best: Plan, budget: float, cost: RegionalCost) -> Plan:
    """A measured plan, stretched to another number of steps: its regional steps have another share, as dense
    and regional steps now have other parts of the run. The plan is returned as it is if no share fits, or if
    its regional steps have several shares.
    """
    if plan.steps == best.steps or len({share for share in best.shares if share != 1}) != 1:
        return plan
    each = _left_for_each(plan.shares, budget)
    if not cost(MIN_RATIO) <= each <= cost(MAX_SHARE):
        return plan
    return replace(plan, shares=_with_share(plan.shares, share_of(each, cost)))


def fitted(shares: tuple[float, ...], budget: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """The same dense and regional steps, with the token share of the regional steps changed so that the cost
    of the run equals the budget.

    In two cases, the result has another form. First, the share would have to be below LEAST_FITTED, for
    example because the text has many rows: then only the first steps and the last DENSE_END are dense, and
    each of the others has a share of about USUAL_SHARE. Second, regional steps leave out the rows of
    reference images (`editing`). The result is None if no share up to MAX_SHARE, and in the first of these
    forms from LEAST_FITTED on, meets the budget, or if regional steps save too little.

    Args:
        shares: token shares of a plan for another run: dense steps and at least one regional step; all
            regional steps have the same share.
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
    """
    if leaves_out_references(cost):
        return alternating_edit(budget, cost)
    each = _left_for_each(shares, budget)
    if cost(LEAST_FITTED) <= each <= cost(MAX_SHARE):
        return _with_share(shares, share_of(each, cost))
    if each > cost(MAX_SHARE) or cost(USUAL_SHARE) > LARGEST_COST:
        return None
    other = shares_for(budget, USUAL_SHARE, DENSE_PART, cost, DENSE_END)
    return other if other and min(other) >= LEAST_FITTED else None


def fitted_steps(shares: tuple[float, ...], budget: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """As `fitted`, but with the same number of steps, for noise levels that are already made. If there are
    no reference images, and the share would not be between LEAST_FITTED and MAX_SHARE, only the first steps
    are dense: as many as leave about USUAL_SHARE to the regional steps. The run costs more than the budget
    if even LEAST_FITTED does.
    """
    if leaves_out_references(cost):
        found = alternating_edit_of(len(shares), budget, cost)
        return found if min(found) < 1 else None
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
