"""Candidates for plans with regional steps at a given cost of the run: each candidate is the token share of
every step.
"""

from __future__ import annotations

from ..config import MIN_RATIO
from .editing import START_PART, alternating_edit, alternating_edit_of
from .plan import MIN_DENSE
from .regional_cost import MAX_SHARE, RegionalCost, leaves_out_references, share_of
from .rhythm import Rhythm

DENSE_PART = 0.45
"""Share of a run's cost that dense steps have in `shares_of_steps`, where the number of steps is given."""

# For each candidate whose regional steps follow each other: token share of a regional step, and share of the
# run's cost that the dense steps at its start have. Regional steps start late, so that the first part of a
# run, in which the whole image changes, is dense.
CONSTANT = ((0.7, 0.3), (0.7, 0.55))
DENSE_END = 1
"""Dense steps at the end of these candidates. They renew the textures that regional steps have computed with
outdated keys and values: the Frechet distance of fine textures falls by up to 31 %, for up to 0.5 dB of PSNR
(bench/results/2026-11-27-h100/shapes)."""
# The same for a candidate whose regional and dense steps alternate after the start.
ALTERNATING = (0.55, 0.28)
# For each candidate of a run with reference images: share of the run's cost that the start has.
EDITING = (START_PART, 0.2)


def candidates(budget: float, cost: RegionalCost) -> list[tuple[float, ...]]:
    """The candidates for a run of this cost: for each candidate, the token share of every step.

    Args:
        budget: cost of the run, in multiples of the cost of a dense step.
        cost: function from the token share of a regional step to the step's cost, in the same unit.
    """
    if leaves_out_references(cost):
        tried = [alternating_edit(budget, cost, part) for part in EDITING]
    else:
        tried = [shares_for(budget, share, dense, cost, DENSE_END) for share, dense in CONSTANT]
        tried.append(alternating(budget, *ALTERNATING, cost))
    return list({shares: None for shares in tried if shares is not None})


def shares_for(
    budget: float, share: float, dense: float, cost: RegionalCost, end: int = 0
) -> tuple[float, ...] | None:
    """The token share of every step of a run that starts with dense steps and continues with regional ones;
    None if no such run meets the budget.

    Args:
        budget: cost of the run, in multiples of the cost of a dense step.
        share: approximate token share of a regional step; it is adjusted so that the run costs the budget.
        dense: share of the budget that is spent on the dense steps at the start, approximately.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
        end: number of dense steps at the end.
    """
    n_dense = max(round(budget * dense), MIN_DENSE)
    rest = budget - n_dense - end
    n_regional = round(rest / cost(share)) if rest > 0 else 0
    if n_regional < 1 or not cost(MIN_RATIO) <= rest / n_regional <= cost(MAX_SHARE):
        return None
    return (1.0,) * n_dense + (share_of(rest / n_regional, cost),) * n_regional + (1.0,) * end


def alternating(budget: float, share: float, dense: float, cost: RegionalCost) -> tuple[float, ...] | None:
    """As `shares_for`, but after the dense steps at the start, regional and dense steps alternate; the last
    step is regional. `dense` is the share of the budget that is spent on the start.
    """
    start = max(round(budget * dense), MIN_DENSE)
    n_regional = round((budget - start + 1) / (1 + cost(share)))
    rest = budget - start - (n_regional - 1)
    if n_regional < 1 or not cost(MIN_RATIO) <= rest / n_regional <= cost(MAX_SHARE):
        return None
    return Rhythm(start, share_of(rest / n_regional, cost), every=2).shares(start + 2 * n_regional - 1)


def shares_of_steps(steps: int, speed: float, cost: RegionalCost) -> tuple[float, ...]:
    """The token share of every step of a run of `steps` steps that costs as much as steps / speed dense
    steps. If even the smallest possible shares cost more than that, the result has the smallest shares.

    Args:
        steps: number of steps of the run, dense and regional.
        speed: desired speed-up over a run of `steps` dense steps.
        cost: function from the token share of a regional step to the step's cost; it must be increasing.
    """
    budget = steps / speed
    if leaves_out_references(cost):
        return alternating_edit_of(steps, budget, cost)
    n_dense = min(max(round(budget * DENSE_PART), MIN_DENSE), steps)
    n_regional = steps - n_dense
    if n_regional == 0:
        return (1.0,) * steps
    return (1.0,) * n_dense + (share_of((budget - n_dense) / n_regional, cost),) * n_regional


def reached_speed(shares: tuple[float, ...], cost: RegionalCost) -> float:
    """The speed-up of a run with these token shares over a run of equally many dense steps."""
    return len(shares) / sum(1.0 if share == 1 else cost(share) for share in shares)
