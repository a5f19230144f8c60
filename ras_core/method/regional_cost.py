"""The cost of a regional step as a function of its share of the tokens."""

from __future__ import annotations

from collections.abc import Callable

from ..config import MIN_RATIO

RegionalCost = Callable[[float], float]
"""A function from the token share of a regional step to the step's cost, in multiples of a dense step's
cost. It must be increasing."""

MAX_SHARE = 0.95
"""Largest token share of a regional step. With a larger share, a regional step saves less than its
overhead."""

LEAST_FITTED = 0.4
"""Smallest token share of a regional step in a plan that is fitted to another model. The smallest share of a
measured plan (`family_plans.REGIONAL`) is 0.51."""

LEAST_LEFT_OUT = 0.01
"""Smallest part of a dense step's cost that counts as left out, above the rounding of token counts."""

LARGEST_COST = 0.85
"""If a regional step with a usual share costs more, it saves too little to be worth its error."""

USUAL_SHARE = 0.7
"""Approximate token share of a regional step in runs in which only the first steps are dense."""


def share_of(wanted: float, cost: RegionalCost) -> float:
    """The token share at which a regional step has the cost `wanted`, found by bisection."""
    low, high = MIN_RATIO, MAX_SHARE
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return round((low + high) / 2, 4)


def leaves_out_references(cost: RegionalCost) -> bool:
    """Whether regional steps leave out the rows of reference images. A step's cost is linear in its share, so
    the costs of two shares give that of a regional step with all tokens. It is below 1, the cost of a dense
    step, only if the dense step has further rows.
    """
    return 2 * cost(0.75) - cost(0.5) < 1 - LEAST_LEFT_OUT
