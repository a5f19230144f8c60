"""Plans for a model that nobody has calibrated: plain sampling on the grids of its family, or better ones.

family_plans.json holds, for each family, what a long step over each part of the schedule costs ("costs"). It
may also hold whole plans ("plans"), in the form in which RAS Calibrate keeps them; these come first.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import RASError
from .plan import FULL_STEPS, PLAN_SAMPLERS, PLAN_SPEEDS, VERSION, Plan, plain_steps, read_json
from .plan_set import PlanSet
from .sigma_grid import normalised, step_density

FIRST_ORDER_SPEEDS = ("2.5x", "3x")
"""At these speeds, which have few steps, euler came closer than dpmpp_2m on all models, so its plans come
first."""

DATA = Path(__file__).with_name("family_plans.json")


def family_plans(family: str | None) -> PlanSet:
    """The plans that ship for a family, then a plain one for each speed and sampler.

    Args:
        family: name of the adapter's module, such as "sd3". None, or a family without data, gets the mean of
            all families.
    """
    families = densities()
    found = families.get(family or "")
    origin = f"grids of the {family} family" if found else "mean grid of all families that were measured"
    found = found or _mean(list(families.values()))
    plans = tuple(
        Plan(
            speed, sampler, found[sampler], (1.0,) * plain_steps(speed),
            speedup=FULL_STEPS / plain_steps(speed), origin=origin,
        )
        for speed in PLAN_SPEEDS
        for sampler in sorted(PLAN_SAMPLERS, reverse=speed in FIRST_ORDER_SPEEDS)
    )  # fmt: skip
    return PlanSet((*_shipped().get(family or "", ()), *plans), origin)


@lru_cache(maxsize=1)
def densities() -> dict[str, dict[str, tuple[float, ...]]]:
    """Densities by family and sampler.

    Raises:
        RASError: the data file of the pack is damaged.
    """
    return {
        family: {sampler: step_density(costs, sampler == "dpmpp_2m") for sampler in PLAN_SAMPLERS}
        for family, costs in _data()["costs"].items()
    }


@lru_cache(maxsize=1)
def _shipped() -> dict[str, tuple[Plan, ...]]:
    """Whole plans by family.

    Raises:
        RASError: the file that ships is damaged.
    """
    return {family: tuple(map(Plan.from_dict, plans)) for family, plans in _data().get("plans", {}).items()}


def _data() -> dict[str, Any]:
    data: Any = read_json(DATA.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("version") != VERSION or not data.get("costs"):
        raise RASError(
            f"{DATA.name} is damaged.", f"costs by family, version {VERSION}.", "reinstall the pack."
        )
    return data


def _mean(families: list[dict[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    """The mean density; all have the same number of blocks."""
    return {
        sampler: normalised([sum(each) for each in zip(*(one[sampler] for one in families), strict=True)])
        for sampler in PLAN_SAMPLERS
    }
