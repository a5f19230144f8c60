"""What RAS Calibrate tries on a model, and which of the tried grids it takes.

A calibration measures few images, so differences between two runs are partly chance: a run that was more than
2 dB better with two images was 1.0 dB worse with 256 others (docs/quality.md, Calibration). What was best
on other models of the family is therefore expected to be best here too. Something else is taken only if it
was measured to be clearly better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from .family_plans import family_costs, family_plans
from .plan import PLAN_SAMPLERS, PlanSpeed, plain_steps
from .plan_candidates import candidates
from .plan_fitting import fitted
from .regional_cost import RegionalCost
from .sigma_grid import normalised, step_density

Shares = tuple[float, ...]
Density = tuple[float, ...]

GRID_SPEEDS: tuple[PlanSpeed, ...] = ("2x", "3x")
"""Speeds at which all grids are tried. The other speeds take the grid that is best at these."""

GRID_MARGIN = 0.5
"""A grid other than the expected one is taken if it is closer by more than this many dB in the mean of
GRID_SPEEDS."""


def densities_to_try(costs: Sequence[float], family: str | None) -> dict[str, Density]:
    """The step densities to compare, by name; the first is expected to give the best grid.

    Args:
        costs: the measured error of one long step over each part of the schedule.
        family: name of the model's family.
    """
    tried = {}
    known = family_costs(family)
    if known is not None and len(known) == len(costs):
        both = [math.sqrt(a * b) for a, b in zip(normalised(costs), known, strict=True)]
        tried["grid of the family"] = step_density(known, multistep=False)
        tried["mean of the measured density and that of the family"] = step_density(both, multistep=False)
    tried["measured density"] = step_density(costs, multistep=False)
    tried["measured density, half-way to even"] = step_density(costs, multistep=True)
    return tried


def best_grid(closeness: Mapping[str, Sequence[float]]) -> str:
    """The name of the grid to take.

    Args:
        closeness: for each grid that was tried, the closeness of its runs in dB; the expected grid comes
            first.
    """
    expected, *others = closeness
    best = max(others, key=lambda name: fmean(closeness[name]), default=expected)
    gain = fmean(closeness[best]) - fmean(closeness[expected])
    return best if gain > GRID_MARGIN else expected


def shares_to_try(speed: PlanSpeed, family: str | None, cost: RegionalCost) -> list[Shares]:
    """The token shares of the runs with regional steps to compare at a speed. If the family has a plan with
    regional steps for the speed, its shares come first, fitted to this cost.
    """
    budget, expected = plain_steps(speed), expected_shares(speed, family, cost)
    others = candidates(budget, cost)
    if expected is None:
        return others
    return [expected, *(shares for shares in others if _dense_steps(shares) != _dense_steps(expected))]


def expected_shares(speed: PlanSpeed, family: str | None, cost: RegionalCost) -> Shares | None:
    """The token shares of the family's plan for a speed, fitted to this cost; None if the plan is plain or
    does not fit.
    """
    plan = family_plans(family).best(speed, PLAN_SAMPLERS[0])
    return None if plan.is_plain else fitted(plan.shares, plain_steps(speed), cost)


def _dense_steps(shares: Shares) -> list[bool]:
    return [share == 1 for share in shares]
