"""The plans of a model: those that were tried for each speed, and the choice among them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ..errors import RASError
from .plan import PLAN_SPEEDS, Plan
from .plan_json import VERSION, checked_version, read_json

WORTHWHILE = 0.2
"""Gain in dB over plain sampling that a plan with regional steps must exceed to be chosen: with two seeds,
smaller differences are not significant."""


@dataclass(frozen=True)
class PlanSet:
    """The plans of a model that were tried.

    Attributes:
        plans: plans of any speed and sampler, plain ones first; there may be several for the same speed.
        note: where the plans come from, and how they were measured.
    """

    plans: tuple[Plan, ...]
    note: str = ""

    def best(self, speed: str, sampler: str | None = None, plain: bool = False) -> Plan:
        """The plan of a speed that comes closest to the reference; a plain one unless a plan with regional
        steps is better by more than WORTHWHILE.

        Args:
            speed: one of PLAN_SPEEDS.
            sampler: consider only plans for this sampler; None for any.
            plain: consider only plans without regional steps.

        Raises:
            RASError: there is no such plan.
        """
        found = [p for p in self.plans if p.speed == speed and sampler in (None, p.sampler)]
        found = [p for p in found if p.is_plain or not plain]
        if not found:
            raise RASError(
                f"no plan for {speed}{f' and {sampler}' if sampler else ''}.",
                f"one of: {', '.join(sorted({f'{p.speed} {p.sampler}' for p in self.plans})) or 'none'}.",
                "choose another speed, or calibrate again.",
            )
        return max(found, key=_rank)  # the first one among equally good plans

    def chosen(self) -> tuple[Plan, ...]:
        """The best plan of each speed, for the speeds that have plans."""
        speeds = [speed for speed in PLAN_SPEEDS if any(plan.speed == speed for plan in self.plans)]
        return tuple(self.best(speed) for speed in speeds)

    def describe(self) -> str:
        """The best plan of each speed with its expected speed-up and closeness, one per line."""
        return "\n".join(_line(plan) for plan in self.chosen())

    def to_json(self) -> str:
        plans = [plan.as_dict() for plan in self.plans]
        return json.dumps({"version": VERSION, "note": self.note, "plans": plans}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PlanSet:
        """The plans from the result of `to_json`.

        Raises:
            RASError: the text is not JSON, has another version, or contains an invalid plan.
        """
        values = checked_version("set of plans", read_json(text))
        plans, note = values.get("plans"), values.get("note", "")
        if not isinstance(plans, list) or not plans or not isinstance(note, str):
            raise RASError("a set of plans without plans.", "a list of plans and a note.", "calibrate again.")
        return cls(tuple(Plan.from_dict(each) for each in plans), note)


def _rank(plan: Plan) -> float:
    if plan.closeness is None:
        return -math.inf
    return plan.closeness - (0.0 if plan.is_plain else WORTHWHILE)


def _line(plan: Plan) -> str:
    quality = "closeness not measured" if plan.closeness is None else f"{plan.closeness:.1f} dB"
    return f"{plan.describe()} ({plan.sampler}, {plan.speedup:.2f}x by FLOPs, {quality})"
