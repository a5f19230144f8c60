"""Estimates, before a run and without the model, the time and the closeness of a run with a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..method.family_plans import family_closeness, family_plans
from ..method.few_steps import has_room, is_bounded, is_few, steps_for
from ..method.plan import FULL_STEPS, PLAN_SAMPLERS, Plan
from ..method.plan_set import PlanSet
from ..method.small_images import is_small

MOST_CFG = 5.0
"""Closeness was measured with cfg 3.5. With a much higher one, the image changes faster from step to step, so
runs are less close. The limit is that of usual values for these models; between, nothing was measured."""
PIXELS_PER_TOKEN = 16 * 16
"""In most models; in the others, a token is larger."""


def outlook(
    family: str | None, speed: str, steps: int, sampler: str | None, denoise: float = 1.0,
    pixels: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Estimate a run with the plan of a family.

    Args:
        family: name of the adapter's module, such as "sd3"; None if it is not known.
        speed: one of PLAN_SPEEDS.
        steps: number of steps that the sampler node asks for.
        sampler: name of the sampler; None for the one with the better plan.
        denoise: as in KSampler.
        pixels: number of pixels of the image; None if it is not known.

    Returns:
        `time`: the time of the run, divided by the time without RAS. It is 1 if the run has so few steps that
        RAS stays out of it, or so few that regional steps have no room and the sampler has no plans;
        otherwise it is below 1. `steps` and `dense`: the number of steps, and how many of them compute the
        whole image; None if the sampler has no plans, because the number of steps then stays as set.
        `closeness`: in dB, see `family_closeness`; None if it is not known. If `time` is below 1,
        `unmeasured` then says why: "sampler" if the sampler has no plans, "few" if so few steps leave no room
        for regional ones, "small" if the image is too small for them, "family" if the family was not
        measured, "low" if the run costs less than any that was measured.
    """
    answer = {"time": 1 / float(speed.removesuffix("x")), "steps": None, "dense": None, "closeness": None}
    whole = steps_for(steps, denoise)
    has_plans = not sampler or sampler in PLAN_SAMPLERS
    if is_few(whole) or not (has_plans or has_room(whole, speed)):
        return answer | {"time": 1.0, "steps": steps, "dense": steps}
    if not has_plans:
        return answer | {"unmeasured": "sampler"}
    plans = family_plans(family)
    best = plans.best(speed)
    is_too_small = pixels is not None and is_small(pixels // PIXELS_PER_TOKEN) and not best.is_plain
    plan = (plans.plain_for_run if is_too_small else plans.for_run)(speed, sampler or None, whole)
    is_best = replace(plan, sampler=best.sampler) == best  # samplers may share a plan
    closeness = family_closeness(family, whole / float(speed.removesuffix("x"))) if is_best else None
    if closeness is None:
        answer["unmeasured"] = _why(family, plan, best, has_room(whole, speed))
    plan = plan.resized(steps)
    if is_bounded(whole, speed):
        answer["time"] = plan.steps / steps
    return answer | {"steps": plan.steps, "dense": len(plan.dense_steps), "closeness": closeness}


def _why(family: str | None, plan: Plan, best: Plan, has_room: bool) -> str:
    """Why the closeness of a run with a plan is not known, in a word of `outlook`."""
    if plan.is_plain and not best.is_plain:
        return "small" if has_room else "few"
    return "family" if family_closeness(family, FULL_STEPS) is None else "low"


def inpainting_outlook(
    family: str | None, speed: str, steps: int, sampler: str | None, denoise: float, plans: PlanSet | None
) -> dict[str, Any]:
    """Estimate a run of inpainting, which has dense steps only: as many as the speed allows, if the sampler
    has plans. The arguments are as in `outlook`; `plans` are those that RAS Calibrate has measured on the
    model.

    Returns:
        `time`, `steps`, `dense` and `closeness` as in `outlook`, but `time` is 1 also if the sampler has no
        plans, and `closeness` is None. If `time` is below 1, `unmeasured` is "inpainting".
    """
    answer = {"time": 1.0, "steps": steps, "dense": steps, "closeness": None}
    if is_few(steps_for(steps, denoise)):
        return answer
    if sampler and sampler not in PLAN_SAMPLERS:
        return answer | {"steps": None, "dense": None}
    if plans is None or not _of(plans, speed, sampler):
        plans = family_plans(family)
    whole = steps_for(steps, denoise)
    fewer = plans.plain_for_run(speed, sampler or None, whole).resized(steps).steps
    return answer | {"time": fewer / steps, "steps": fewer, "dense": fewer, "unmeasured": "inpainting"}


def measured_outlook(
    plans: PlanSet, speed: str, steps: int, sampler: str | None, denoise: float = 1.0
) -> dict[str, Any] | None:
    """Estimate a run with plans that RAS Calibrate has measured on the run's model. The arguments are as in
    `outlook`.

    Returns:
        `time`, `steps`, `dense` and `closeness` as in `outlook`, but `time` is that of the plan, and
        `closeness` is None. `measured`: how close the final latent is to a fine reference, in dB. None if
        there is no plan for this speed and sampler, its closeness was not measured, or the run has so few
        steps that RAS stays out of it.
    """
    if is_few(steps_for(steps, denoise)):
        return None
    if not _of(plans, speed, sampler):
        return None
    plan = plans.for_run(speed, sampler or None, steps_for(steps, denoise))
    if plan.closeness is None:
        return None
    resized = plan.resized(steps)
    return {
        "time": 1 / plan.speedup, "steps": resized.steps, "dense": len(resized.dense_steps),
        "closeness": None, "measured": plan.closeness,
    }  # fmt: skip


def _of(plans: PlanSet, speed: str, sampler: str | None) -> list[Plan]:
    """The plans of a speed and a sampler, or of any sampler if none is named."""
    return [each for each in plans.plans if each.speed == speed and sampler in ("", None, each.sampler)]
