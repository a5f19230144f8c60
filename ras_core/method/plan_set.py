"""The plans of a model for each speed, and the choice of the best plan for a given speed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

from ..errors import RASError
from .few_steps import LEAST_STEPS, has_room, is_bounded
from .plan import PLAN_SPEEDS, Plan
from .plan_json import VERSION, checked_version, read_json

MARGIN = 2.0
"""To be chosen, a measured plan must be closer to the reference than the expected plan by more than this many
dB. A calibration measures few images, so smaller differences may be chance. On the demo models, no plan that
was tried was more than 0.13 dB closer than the expected one (docs/quality.md)."""


HERE, ELSEWHERE = "calibrated on this model", "calibrated on another model"
"""How the origin of a measured plan describes the model."""


@dataclass(frozen=True)
class PlanSet:
    """The plans of a model, from which the best plan of a speed is chosen.

    Attributes:
        plans: plans of any speed and sampler; there may be several for the same speed. The first of a speed
            is the expected plan: the one that is best as far as was known before measuring.
        note: where the plans come from, and how they were measured.
        model: identifies the model that the plans were measured on (host/fingerprint.py); empty if not known.
        source: identifies the nodes from which the measured model came; empty if it is not known.
    """

    plans: tuple[Plan, ...]
    note: str = ""
    model: str = ""
    source: str = ""

    def of_another_model(self) -> PlanSet:
        """These plans, whose origins say that they were measured on a model other than that of the run."""
        plans = (replace(plan, origin=plan.origin.replace(HERE, ELSEWHERE)) for plan in self.plans)
        return replace(self, plans=tuple(plans))

    def best(self, speed: str, sampler: str | None = None, plain: bool = False) -> Plan:
        """The best plan for a speed: the expected plan, or else the one whose result is closest to the
        reference if it is closer than the expected plan by more than MARGIN. If no plan for the speed was
        measured, the expected plan is returned.

        Args:
            speed: one of PLAN_SPEEDS.
            sampler: consider only plans for this sampler; None for any.
            plain: consider only plans without regional steps.

        Raises:
            RASError: there is no plan for this speed and sampler.
        """
        found = [p for p in self.plans if p.speed == speed and sampler in (None, p.sampler)]
        found = [p for p in found if p.is_plain or not plain]
        if not found:
            raise RASError(
                f"no plan for {speed}{f' and {sampler}' if sampler else ''}.",
                f"one of: {', '.join(sorted({f'{p.speed} {p.sampler}' for p in self.plans})) or 'none'}.",
                "choose another speed, or calibrate again.",
            )
        return max(found, key=lambda plan: _rank(plan, found[0]))  # among equally good plans, the first

    def for_run(self, speed: str, sampler: str | None, full_steps: float) -> Plan:
        """The best plan for a run that would have `full_steps` steps without RAS, if it covered the whole
        schedule: that of `best`, or of `plain_for_run` if so few steps leave no room for regional ones.
        """
        best = self.best(speed, sampler)
        if has_room(full_steps, speed):
            return best
        return self.plain_for_run(speed, sampler, full_steps)

    def plain_for_run(self, speed: str, sampler: str | None, full_steps: float) -> Plan:
        """The plan of `plain` for a run as in `for_run`, with at least LEAST_STEPS steps."""
        plain, whole = self.plain(speed, sampler), round(full_steps)
        if not is_bounded(full_steps, speed) or whole <= LEAST_STEPS:
            return plain
        shares = (1.0,) * LEAST_STEPS
        return replace(plain, shares=shares, full_steps=whole, closeness=None, speedup=whole / LEAST_STEPS)

    def plain(self, speed: str, sampler: str | None = None) -> Plan:
        """The best plain plan of a speed; if none was tried, as many dense steps as reach the speed, on the
        noise levels of its best plan. `sampler` is as in `best`.

        Raises:
            RASError: there is no plan of this speed and sampler at all.
        """
        best = self.best(speed, sampler)
        if any(p.is_plain for p in self.plans if p.speed == speed and sampler in (None, p.sampler)):
            return self.best(speed, sampler, plain=True)
        steps = max(round(best.full_steps / float(speed.removesuffix("x"))), 1)
        return replace(best, shares=(1.0,) * steps, closeness=None, speedup=best.full_steps / steps)

    def chosen(self) -> tuple[Plan, ...]:
        """The best plan of each speed for which there are plans."""
        speeds = [speed for speed in PLAN_SPEEDS if any(plan.speed == speed for plan in self.plans)]
        return tuple(self.best(speed) for speed in speeds)

    def describe(self) -> str:
        """One line for each speed: its best plan, with the plan's expected speed-up and closeness to the
        reference.
        """
        return "\n".join(_line(plan) for plan in self.chosen())

    def to_json(self) -> str:
        values = {"version": VERSION, "note": self.note, "model": self.model, "source": self.source}
        values["plans"] = [plan.as_dict() for plan in self.plans]
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PlanSet:
        """The plans from the result of `to_json`.

        Raises:
            RASError: the text is not JSON, has another version, or contains an invalid plan.
        """
        values = checked_version("set of plans", read_json(text))
        plans, texts = values.get("plans"), [values.get(name, "") for name in ("note", "model", "source")]
        if not isinstance(plans, list) or not plans or not all(isinstance(text, str) for text in texts):
            raise RASError(
                "a set of plans without any plan.", "a list of plans and a note.", "calibrate again."
            )
        return cls(tuple(Plan.from_dict(each) for each in plans), *texts)


def _rank(plan: Plan, expected: Plan) -> float:
    if plan.closeness is None:
        return -math.inf
    return round(plan.closeness - (0.0 if plan is expected else MARGIN), 3)


def _line(plan: Plan) -> str:
    quality = "closeness not measured" if plan.closeness is None else f"{plan.closeness:.1f} dB"
    return f"{plan.describe()} ({plan.sampler}, {plan.speedup:.2f}x by FLOPs, {quality})"
