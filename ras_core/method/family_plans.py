"""Plans for a model that has not been calibrated, made from measurements of its family (such as SD3).

family_plans.json holds, for each family, the error of one long step over each part of the schedule
("costs"), and how close images come to the converged image with its plans ("closeness"). It may also hold
complete plans ("plans"), as RAS Calibrate saves them; such plans precede the others in the result of
`family_plans`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RASError
from .plan import FULL_STEPS, PLAN_SAMPLERS, PLAN_SPEEDS, Plan, plain_steps
from .plan_json import VERSION, read_json
from .plan_set import PlanSet
from .rhythm import Rhythm
from .sigma_grid import normalised, step_density

REGIONAL: dict[str, dict[str, tuple[int, Rhythm]]] = {
    "sd3": {
        "1.5x": (23, Rhythm(start=6, share=0.708, end=1)),
        "2x": (17, Rhythm(start=4, share=0.73, end=1)),
        "2.5x": (14, Rhythm(start=4, share=0.664, end=1)),
        "3x": (11, Rhythm(start=4, share=0.7, end=1)),
    },
    "lumina2": {
        "1.5x": (23, Rhythm(start=6, share=0.708, end=1)),
        "2x": (17, Rhythm(start=4, share=0.73, end=1)),
    },
    "flux": {
        "1.5x": (24, Rhythm(start=5, share=0.697)),
        "2x": (17, Rhythm(start=4, share=0.537, every=2)),
        "2.5x": (13, Rhythm(start=3, share=0.806)),
        "3x": (10, Rhythm(start=6, share=0.76, end=1)),
    },
}
"""By measured family and speed: number of steps, and how dense and regional steps follow each other. These
were the best of those measured, by PSNR and by the Frechet distance of fine textures: without a dense last
step, some are up to 0.4 dB closer, but textures that were computed with outdated keys and values stay in the
image (bench/results/2026-11-27-h100/shapes). Where no plan with regional steps was better than one without
them, there is none."""
# By family that was not measured: the measured family whose blocks are most similar.
NEAREST = {
    "aura_flow": "flux",
    "chroma": "flux",
    "cosmos_predict2": "lumina2",
    "flux2": "flux",
    "hidream": "flux",
    "hunyuan_image": "flux",
    "ideogram4": "lumina2",
    "kandinsky5": "lumina2",
    "krea2": "lumina2",
    "mage_flow": "sd3",
    "qwen_image": "sd3",
}
NAMES = {"flux": "Flux", "lumina2": "Lumina 2", "sd3": "SD3"}
"""By measured family: its name in the log."""
EVEN_STEPS_BELOW = {"lumina2": 0.125}
"""By measured family: if inpainting starts from pure noise with a mask smaller than this share of the image,
evenly spaced steps came closer to a fine run than the plan's noise levels: with a sixteenth, by 1.5 dB. With
a quarter, and in other families with any mask, the plan's noise levels were closer or as close
(docs/quality.md)."""
ROUNDED = 0.05
"""How far a run's cost may be below the lowest that was measured: its number of steps is whole, so its cost
may miss the speed a little."""
DATA = Path(__file__).with_name("family_plans.json")


def family_plans(family: str | None) -> PlanSet:
    """The plans of a family, in order of preference: the complete plans in the data file; plans with regional
    steps, computed from the family's costs; plain plans (all steps dense), also computed from these costs.

    Args:
        family: name of the adapter's module, such as "sd3". For a family in NEAREST, the plans are those of
            the family that it names. For None or another family without data, the result is plain plans only,
            on a grid from the mean of all families' costs.
    """
    measured = NEAREST.get(family or "", family or "")
    found = family_costs(family)
    if found is None:
        origin = "mean noise levels of all families that were measured"
        return PlanSet(_plain(_mean(list(_costs().values())), origin), origin)
    origin = f"noise levels of the {NAMES[measured]} family"
    if measured != family:
        origin += ", the most similar one that was measured"
    shipped = _shipped().get(measured, ())
    return PlanSet((*shipped, *_regional(measured, found, origin), *_plain(found, origin)), origin)


def family_costs(family: str | None) -> tuple[float, ...] | None:
    """The error of one long step over each part of the schedule, measured on the family or on its nearest;
    None if there is no such family.
    """
    return _costs().get(NEAREST.get(family or "", family or ""))


def even_steps_below(family: str | None) -> float:
    """Inpainting from pure noise takes evenly spaced steps if its mask is smaller than this share of the
    image; 0 if it takes them with no mask.
    """
    return EVEN_STEPS_BELOW.get(NEAREST.get(family or "", family or ""), 0.0)


def family_closeness(family: str | None, budget: float) -> float | None:
    """How close images sampled with a family's plan come to the converged image: PSNR in dB on the family's
    demo model. It was measured for the speeds with FULL_STEPS steps, and is interpolated for other costs.

    Args:
        budget: cost of the run if it covered the whole schedule, in multiples of a dense step.

    Returns:
        For a higher cost than was measured, the closeness of the highest one; for a lower cost, or a family
        that was not measured, None.
    """
    by_speed = _data().get("closeness", {}).get(family, {})
    known = sorted((FULL_STEPS / float(speed.removesuffix("x")), dB) for speed, dB in by_speed.items())
    if not known or budget < known[0][0] * (1 - ROUNDED):
        return None
    costs, values = zip(*known, strict=True)
    return round(float(np.interp(math.log(budget), [math.log(cost) for cost in costs], values)), 1)


def _regional(measured: str, costs: Sequence[float], origin: str) -> tuple[Plan, ...]:
    """The plans with regional steps of a measured family. The token shares in REGIONAL are for SD3-medium, on
    which the plans reach their speeds with them. A run on another model changes the shares so that it reaches
    the same speed.
    """
    density = step_density(costs, multistep=False)
    return tuple(
        Plan(
            speed, sampler, density, rhythm.shares(steps),
            speedup=float(speed.removesuffix("x")), origin=origin,
        )
        for speed, (steps, rhythm) in REGIONAL.get(measured, {}).items()
        for sampler in PLAN_SAMPLERS
    )  # fmt: skip


def _plain(costs: Sequence[float], origin: str) -> tuple[Plan, ...]:
    return tuple(
        Plan(
            speed, sampler, step_density(costs, multistep=False), (1.0,) * plain_steps(speed),
            speedup=FULL_STEPS / plain_steps(speed), origin=origin,
        )
        for speed in PLAN_SPEEDS
        for sampler in PLAN_SAMPLERS
    )  # fmt: skip


@lru_cache(maxsize=1)
def _costs() -> dict[str, tuple[float, ...]]:
    """By family: the error of one long step over each part of the schedule, scaled so that the errors sum to
    1.

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
            f"{DATA.name} is damaged.",
            f"version {VERSION}, with the costs of each family.",
            "reinstall the pack.",
        )
    return data


def _mean(families: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The mean of all families' costs, for each part of the schedule; every family has the same parts."""
    return normalised([sum(each) for each in zip(*families, strict=True)])
