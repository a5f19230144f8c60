"""Plans for a model that nobody has calibrated: its family's grids, with regional steps if these gain.

family_plans.json holds, for each family, the error of one long step over each part of the schedule
("costs"). It may also hold whole plans ("plans"), as RAS Calibrate saves them; these come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import RASError
from .plan import FULL_STEPS, PLAN_SAMPLERS, PLAN_SPEEDS, Plan, plain_steps
from .plan_json import VERSION, read_json
from .plan_set import PlanSet
from .sigma_grid import normalised, step_density

FIRST_ORDER_SPEEDS = ("2.5x", "3x")
"""At these speeds, which have few steps, euler came closer to the reference than dpmpp_2m on all models, so
euler's plans come first."""

GRADUAL_SPEED = "1.5x"
"""At this speed's number of steps, dpmpp_2m is as good on a grid whose step lengths change gradually. With
fewer steps, the measured density comes closer to a reference: 2.4 dB at 14 steps, mean of three models."""

# Dense steps, regional steps, and the share of the tokens in these: the best that were measured on three
# models, 0.6 to 4 dB closer than euler or dpmpp_2m without regional steps at the same cost. (3x with dpmpp_2m
# was measured with forecast2 and spread only.)
REGIONAL: dict[tuple[str, str], tuple[int, int, float]] = {
    ("1.5x", "dpmpp_2m"): (7, 16, 0.71),
    ("2x", "dpmpp_2m"): (6, 11, 0.706),
    ("2.5x", "dpmpp_2m"): (4, 10, 0.7),
    ("2.5x", "euler"): (4, 10, 0.7),
    ("3x", "euler"): (4, 7, 0.74),
    ("3x", "dpmpp_2m"): (5, 7, 0.59),
}
DATA = Path(__file__).with_name("family_plans.json")


def family_plans(family: str | None) -> PlanSet:
    """The plans that ship for a family, then those that follow from its costs, regional ones first.

    Args:
        family: name of the adapter's module, such as "sd3". None, or a family without data, gets plain plans
            on the mean grid of all families.
    """
    found = _costs().get(family or "")
    if found is None:
        origin = "mean grid of all families that were measured"
        return PlanSet(_plain(_mean(list(_costs().values())), origin), origin)
    origin = f"grids of the {family} family"
    shipped = _shipped().get(family or "", ())
    return PlanSet((*shipped, *_regional(found, origin), *_plain(found, origin)), origin)


def _regional(costs: Sequence[float], origin: str) -> tuple[Plan, ...]:
    """Plans whose token shares reach their speeds on SD3-medium; a run fits the shares to its own model."""
    return tuple(
        Plan(
            speed, sampler, _density(costs, speed, sampler), (1.0,) * n_dense + (share,) * n_regional,
            speedup=float(speed.removesuffix("x")), origin=origin,
        )
        for (speed, sampler), (n_dense, n_regional, share) in REGIONAL.items()
    )  # fmt: skip


def _plain(costs: Sequence[float], origin: str) -> tuple[Plan, ...]:
    return tuple(
        Plan(
            speed, sampler, _density(costs, speed, sampler), (1.0,) * plain_steps(speed),
            speedup=FULL_STEPS / plain_steps(speed), origin=origin,
        )
        for speed in PLAN_SPEEDS
        for sampler in sorted(PLAN_SAMPLERS, reverse=speed in FIRST_ORDER_SPEEDS)
    )  # fmt: skip


def _density(costs: Sequence[float], speed: str, sampler: str) -> tuple[float, ...]:
    return step_density(costs, multistep=sampler == "dpmpp_2m" and speed == GRADUAL_SPEED)


@lru_cache(maxsize=1)
def _costs() -> dict[str, tuple[float, ...]]:
    """Errors of a long step over each part of the schedule, by family; only their ratios count.

    Raises:
        RASError: the data file of the pack is damaged.
    """
    return {family: normalised(found) for family, found in _data()["costs"].items()}


@lru_cache(maxsize=1)
def _shipped() -> dict[str, tuple[Plan, ...]]:
    """The complete plans in the data file, by family.

    Raises:
        RASError: the data file of the pack is damaged.
    """
    return {family: tuple(map(Plan.from_dict, plans)) for family, plans in _data().get("plans", {}).items()}


def _data() -> dict[str, Any]:
    data: Any = read_json(DATA.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("version") != VERSION or not data.get("costs"):
        raise RASError(
            f"{DATA.name} is damaged.", f"costs by family, version {VERSION}.", "reinstall the pack."
        )
    return data


def _mean(families: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The mean of all families' costs; all have as many parts."""
    return normalised([sum(each) for each in zip(*families, strict=True)])
