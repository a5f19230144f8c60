"""A plan: the data that determines what a run of a given speed computes.

A plan stores its sigma grid not as noise levels but as a density: the share of its steps in each part of the
model's own `simple` schedule. A grid made from it decreases from the model's first noise level to 0, whatever
the model, the number of steps and the shift. If the shift adapts the schedule to another resolution, the grid
adapts too. But if a user changes the shift at the same resolution, the grid moves to other noise levels,
although the same noise levels as before need the most steps (the differential equation has not changed). So a
plan that was measured on a model is used only with the schedule on which it was measured.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..config import MAX_STEPS, MIN_RATIO
from ..errors import RASError, quoted
from .integrator import Solver
from .plan_json import VERSION, checked_version, read_json
from .rhythm import Rhythm
from .shares import percent
from .sigma_grid import grid, normalised, part_of, positions

PlanSampler = Literal["dpmpp_2m", "euler"]
PlanSpeed = Literal["1.5x", "2x", "2.5x", "3x"]
PLAN_SAMPLERS: tuple[PlanSampler, ...] = get_args(PlanSampler)
PLAN_SPEEDS: tuple[PlanSpeed, ...] = get_args(PlanSpeed)
FULL_STEPS = 28
"""Number of steps of the dense run to which speeds are relative."""

SOLVER: Solver = "ab2"
"""The method that integrates all plans, whatever the sampler. Without regional steps, on a grid of the
measured density, its results were 2.4 to 10.5 dB closer to a fine reference than those of dpmpp_2m, and 0.1
to 9.8 dB closer than those of euler (8 to 19 steps, three models)."""

LARGEST = sys.float_info.max

MIN_DENSE = 2
"""Least number of dense steps at the start of a run, because selection compares two estimates."""


def plain_steps(speed: str) -> int:
    """Number of steps of a dense run at this speed: 19 for 1.5x, 14 for 2x, 11 for 2.5x, 9 for 3x."""
    return round(FULL_STEPS / float(speed.removesuffix("x")))


@dataclass(frozen=True)
class Plan:
    """What a run computes so that it reaches a given speed-up over a dense run of `full_steps` steps.

    Attributes:
        speed: one of PLAN_SPEEDS.
        sampler: the sampler that the plan was made for.
        density: share of the steps in each part of the `simple` schedule (parts with equally many steps).
        shares: for each step, the share of the image tokens that it computes: 1 for a dense step, else 0.05
            to below 1. The first two are 1, because selection needs the results of two dense steps.
        kv_cache: format of the K/V cache for regional steps; checked when settings are made from the plan.
        full_steps: number of steps of the dense run that a run of this plan replaces.
        speedup: expected from FLOPs, relative to `full_steps` dense steps.
        closeness: how close the final latent is to a fine reference, in dB; None if it was not measured. In a
            calibration, it is a mean over the images; that of a plan that must not be chosen is limited
            (host/calibration.py).
        origin: where the plan comes from, such as "calibrated on this model at 1024x1024".

    Raises:
        RASError: a value is invalid.
    """

    speed: str
    sampler: str
    density: tuple[float, ...]
    shares: tuple[float, ...]
    kv_cache: str = "auto"
    full_steps: int = FULL_STEPS
    speedup: float = 1.0
    closeness: float | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        _one_of("speed", self.speed, PLAN_SPEEDS)
        _one_of("sampler", self.sampler, PLAN_SAMPLERS)
        _numbers("density", self.density, 0.0, math.inf, "numbers of 0 or more, not all 0")
        _numbers("shares", self.shares, MIN_RATIO, 1.0, f"numbers from {MIN_RATIO} to 1")
        if not 0 < sum(self.density) < math.inf:
            _refuse("density", self.density, "numbers of 0 or more, not all 0")
        if any(share != 1 for share in self.shares[:MIN_DENSE]):
            _refuse("shares", self.shares, f"a share of 1 for each of the first {MIN_DENSE} steps")
        if not _is_whole(self.full_steps) or self.full_steps < 1:
            _refuse("full_steps", self.full_steps, "a whole number of 1 or more")
        if not _is_number(self.speedup) or self.speedup <= 0:
            _refuse("speedup", self.speedup, "a number above 0")
        if self.closeness is not None and not _is_number(self.closeness):
            _refuse("closeness", self.closeness, "a number of decibels, or null if it was not measured")
        for name in ("kv_cache", "origin"):
            if not isinstance(getattr(self, name), str):
                _refuse(name, getattr(self, name), "a string")
        object.__setattr__(self, "density", normalised(self.density))
        object.__setattr__(self, "shares", tuple(self.shares))

    @property
    def steps(self) -> int:
        return len(self.shares)

    @property
    def solver(self) -> Solver:
        """The method that integrates a run of this plan."""
        return SOLVER

    @property
    def dense_steps(self) -> tuple[int, ...]:
        """Indices of the steps that compute all tokens."""
        return tuple(step for step, share in enumerate(self.shares) if share == 1)

    @property
    def is_plain(self) -> bool:
        """Whether all steps are dense, so that a run of the plan needs no regional steps."""
        return len(self.dense_steps) == self.steps

    @property
    def has_even_grid(self) -> bool:
        """Whether the run's noise levels are those of the `simple` schedule with as many steps."""
        return max(self.density) - min(self.density) < 1e-9

    @property
    def token_share(self) -> float:
        """Share of the image tokens that a step computes, averaged over the steps of the run."""
        return sum(self.shares) / self.steps

    def levels(self, fine: Sequence[float]) -> tuple[float, ...]:
        """The run's noise levels.

        Args:
            fine: the model's `simple` schedule with more steps than the plan.
        """
        return grid(fine, positions(self.density, self.steps))

    def levels_of_part(self, fine: Sequence[float], given: Sequence[float]) -> tuple[float, ...]:
        """The noise levels that replace the sampler's own levels; the first and the last are kept.

        Args:
            fine: the model's `simple` schedule.
            given: the sampler's own levels; they may be those of a part of a run or of a denoise below 1.
        """
        return self.resized(len(given) - 1).grid_between(fine, given)

    def grid_between(self, fine: Sequence[float], given: Sequence[float]) -> tuple[float, ...]:
        """The noise levels with all steps of the plan placed between the first and last level of `given`."""
        return part_of(fine, self.density, self.steps, given)

    def resized(self, full_steps: int) -> Plan:
        """This plan for a dense run of `full_steps` steps: same speed, with its shares stretched to match."""
        steps = max(1, round(self.steps * full_steps / self.full_steps))
        return replace(self, shares=self._stretched(steps), full_steps=max(full_steps, 1))

    def on_grid(self, steps: int) -> Plan:
        """This plan with `steps` steps, for a grid that is already fixed; `full_steps` is scaled likewise."""
        full_steps = max(round(steps * self.full_steps / self.steps), 1)
        return replace(self, shares=self._stretched(steps), full_steps=full_steps)

    def _stretched(self, steps: int) -> tuple[float, ...]:
        if rhythm := Rhythm.of(self.shares):
            return rhythm.stretched(self.steps, steps, MIN_DENSE).shares(steps)
        shares = (self.shares[step * self.steps // steps] for step in range(steps))
        return (1.0,) * min(MIN_DENSE, steps) + tuple(shares)[MIN_DENSE:]

    def describe(self) -> str:
        """One line: "2x: 17 steps instead of 28, 4 dense, 81 % of tokens"."""
        return described(self.speed, self.shares, self.full_steps)

    def as_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1)

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """The plan from the result of `as_dict`.

        Raises:
            RASError: `values` has another version, a missing or unknown field, or an invalid value.
        """
        values = checked_version("plan", values)
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            wrong = sorted(values.keys() ^ names)
            raise RASError(
                f"a plan with missing or unknown fields: {', '.join(map(str, wrong))}.",
                f"the fields {', '.join(sorted(names))}.",
                "calibrate again, or take the plan from an unchanged file.",
            )
        lists = {name: _as_tuple(name, values[name]) for name in ("density", "shares")}
        plan = cls(**{**values, **lists})
        if not plan.steps <= plan.full_steps <= MAX_STEPS:  # another file than calibration writes
            _refuse("full_steps", plan.full_steps, f"a number from that of the shares to {MAX_STEPS}")
        return plan

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cls.from_dict(read_json(text))


def described(speed: str, shares: Sequence[float], full_steps: int) -> str:
    """One line about the run of a plan: its speed, its steps and its mean share of tokens."""
    dense = sum(share == 1 for share in shares)
    # "17 of 28 steps" would read like a run that was cut off.
    fewer = f"{len(shares)} steps instead of {full_steps}"
    steps = fewer if 1 < len(shares) < full_steps else f"{len(shares)} of {full_steps} steps"
    if dense == len(shares):
        return f"{speed}: {steps}, all dense"
    return f"{speed}: {steps}, {dense} dense, {percent(sum(shares) / len(shares))} of tokens"


def _as_tuple(name: str, value: Any) -> tuple:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_STEPS:
        _refuse(name, value, f"a list of at most {MAX_STEPS} numbers")
    return tuple(value)


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        _refuse(name, value, f"one of {', '.join(choices)}")


def _numbers(name: str, values: Any, low: float, high: float, expected: str) -> None:
    if not values or not all(_is_number(value) and low <= value <= high for value in values):
        _refuse(name, values, expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(name: str, value: Any, expected: str) -> None:
    raise RASError(
        f"a plan with {name} = {quoted(value)}.",
        f"{expected}.",
        f"correct {name}, or calibrate again.",
    )
