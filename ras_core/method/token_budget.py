"""The adaptive budget: how many tokens each regional step gets, out of one purse for the run.

The purse holds what the fixed budget of the same settings would spend on its regional steps. A step's share
follows its *demand*, the mean over tokens of the root of the predicted change: a token that changes by r a
step and is computed every p steps is off by r (p - 1) / 2 on average and costs 1 / p, and the least error at
a given cost has 1 / p proportional to the root of r. How much share a unit of demand buys is solved anew at
each step, so that the demand expected from there to the end uses up the purse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .schedule import StepKind, StepPlan

LEVELS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Shares that a step may get. Few of them, so that CUDA graphs serve again (graphs/eligibility.py)."""

FLOOR = 0.5
"""Lowest share of a step, of the average. Late steps move little, but nothing
corrects them any more: half of that floor cost up to a decibel."""

EMPHASIS = 2.0
"""Power of the demand that the share follows where nearly all tokens are cached; it falls to 0 with their
number. At half of the tokens it is the 1 of the reasoning above. With fewer of them, the steps in which much
moves need more than that: their errors grow on the way to the picture."""

EXPECTED_DECLINE = 0.13
"""Demand at the end of a run over that at its start, until its own measurements say otherwise."""

TRUST = 40.0
"""What the expectation weighs beside the measured steps, as a sum of squared distances in steps."""

FARTHEST = 20.0
"""Bound of the logarithm of a need: a broken or endless forecast must not end a run with an overflow."""


class Purse:
    """Decides step after step, from plain numbers.

    Args:
        plan: the plan of the fixed budget; its regional steps fill the purse, and are decided anew.
    """

    def __init__(self, plan: Sequence[StepPlan]):
        shares = [step.ratio for step in plan if step.kind is StepKind.REGIONAL]
        self._open = [step.index for step in plan if step.kind is StepKind.REGIONAL]
        average = sum(shares) / len(shares)
        self._levels = levels_for(average)
        self._power = EMPHASIS * (1.0 - average)
        self._expected_slope = math.log(EXPECTED_DECLINE) / len(plan)
        self._demands: dict[int, float] = {}  # step: logarithm of its demand
        self.left = sum(shares)

    def is_open(self, step: int) -> bool:
        """Whether there is anything left to decide at this step."""
        return step <= self._open[-1]

    def decide(self, planned: StepPlan, demand: float | None) -> StepPlan:
        """What a step becomes; called once a step, in order.

        Args:
            planned: the step in the fixed plan. Dense ones stay, and are not paid from the purse.
            demand: mean root of the predicted change over tokens and images; None where it is not known. One
                that is not a positive number tells nothing either.
        """
        if demand is not None and 0 < demand < math.inf:
            self._demands[planned.index] = math.log(demand)
        if planned.kind is StepKind.DENSE:
            return planned
        share = self._nearest_level(self._share(planned.index), planned.index)
        self.left -= share
        if share == 1.0:
            return StepPlan(planned.index, StepKind.DENSE, is_reset=True)
        return replace(planned, ratio=share)

    def _share(self, step: int) -> float:
        """The step's part of what is left, by its demand and the demand expected of the steps after it."""
        ahead = [other - step for other in self._open if other >= step]
        powers = [self._power * value for value in self._forecast(step, ahead)]
        needs = [math.exp(min(max(power, -FARTHEST), FARTHEST)) for power in powers]
        low, high = 0.0, 1.0 / min(needs)
        for _ in range(80):
            price = (low + high) / 2
            spent = sum(min(max(price * need, self._levels[0]), 1.0) for need in needs)
            low, high = (price, high) if spent < self.left else (low, price)
        return min(max(low * needs[0], self._levels[0]), 1.0)

    def _forecast(self, step: int, ahead: Sequence[int]) -> list[float]:
        """Logarithm of the demand `ahead` steps on, less that of the trend at `step`."""
        if not self._demands:
            return [self._expected_slope * distance for distance in ahead]
        steps, values = list(self._demands), list(self._demands.values())
        middle, mean = sum(steps) / len(steps), sum(values) / len(values)
        spread = sum((each - middle) ** 2 for each in steps)
        joint = sum((each - middle) * value for each, value in zip(steps, values, strict=True))
        slope = (joint + TRUST * self._expected_slope) / (spread + TRUST)
        surprise = self._demands.get(step, mean + slope * (step - middle)) - mean - slope * (step - middle)
        return [slope * distance + (surprise if distance == 0 else 0.0) for distance in ahead]

    def _nearest_level(self, share: float, step: int) -> float:
        """The level nearest to `share` that leaves the lowest one for every step to come."""
        to_come = sum(other > step for other in self._open)
        affordable = self.left - to_come * self._levels[0] + 1e-9
        levels = [level for level in self._levels if level <= affordable] or [self._levels[0]]
        return min(levels, key=lambda level: abs(level - share))


def levels_for(average: float) -> tuple[float, ...]:
    """The shares of a run, lowest first: half of the average, and the levels above it."""
    lowest = round(FLOOR * average, 6)  # the same for all runs of a ratio, whatever a sum's last digit
    return (lowest, *(level for level in LEVELS if level > lowest))
