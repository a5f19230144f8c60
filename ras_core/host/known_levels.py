"""Recognises where the noise levels of a run come from: RAS Scheduler, a scheduler of ComfyUI, or neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from ..method.few_steps import FEW_STEPS, is_few, whole_run_steps
from ..method.plan_set import PlanSet
from .measured_runs import simple_levels
from .plans import FINE_LEVELS, made_levels

Levels = Sequence[float]

TOLERANCE = 1e-5
"""Two noise levels count as the same if they differ by at most this fraction of the schedule's first level,
because samplers store noise levels in float32."""

ROUNDING = 1e-3
"""The same for the levels of a whole schedule, which other nodes may have rounded to float16 or scaled a
little. Levels of different whole schedules are farther apart; those of short parts are not."""


def is_grid_of_any(plans: PlanSet, model: ModelPatcher, levels: Levels) -> bool:
    """Whether `levels` are noise levels that RAS Scheduler has made from any of `plans`, and not those of the
    model's `simple` schedule.

    The function tries all plans, not only the plans for this run's speed and sampler, because the user may
    have chosen another speed or sampler on RAS Scheduler. The result is False for a single step: it has no
    levels between the first and the last, so nothing shows where it comes from, and it cannot be replaced by
    fewer.
    """
    steps = len(levels) - 1
    if steps == 1 or _are_same(levels, simple_levels(model, steps)):
        return False
    each_grid = {plan.density: plan for plan in plans.plans}.values()
    grids = (plan.on_grid(steps).grid_between(made_levels(model, plan), levels) for plan in each_grid)
    tolerance = ROUNDING if _are_whole(model, levels) else TOLERANCE
    return any(_are_same(levels, grid, tolerance) for grid in grids)


def have_few_steps(model: ModelPatcher, levels: Levels) -> bool:
    """Whether `levels` are those of a schedule with few steps, or a part of one. Only the steps of a part of
    the `simple` schedule show how many the whole schedule has; the other schedules are tried one by one.
    """
    if is_few(whole_run_steps(simple_levels(model, FINE_LEVELS), levels)):
        return True
    steps = len(levels) - 1
    return any(
        _are_same(levels, whole[first : first + steps + 1])
        for total in range(steps, FEW_STEPS + 1)
        for whole in _schedules(model, total)
        for first in range(len(whole) - steps)
    )


def are_custom(model: ModelPatcher, levels: Levels) -> bool:
    """Whether `levels` begin and end as a whole schedule does, but are not those of any scheduler."""
    return _are_whole(model, levels) and not any(
        len(whole) == len(levels) and _are_same(levels, whole, ROUNDING)
        for whole in _schedules(model, len(levels) - 1)
    )


def _are_whole(model: ModelPatcher, levels: Levels) -> bool:
    """Whether levels begin and end as a whole schedule does."""
    nearby = ROUNDING * levels[0]
    return abs(levels[0] - simple_levels(model, 1)[0]) <= nearby and levels[-1] <= nearby


def _schedules(model: ModelPatcher, steps: int) -> Iterator[list[float]]:
    """The noise levels of each scheduler that KSampler offers, for this number of steps."""
    sampling = model.get_model_object("model_sampling")
    for name in comfy.samplers.SCHEDULER_NAMES:
        try:
            yield comfy.samplers.calculate_sigmas(sampling, name, steps).tolist()
        except Exception:  # another pack's scheduler, which may not know this model
            continue


def _are_same(levels: Levels, others: Levels, tolerance: float = TOLERANCE) -> bool:
    nearby = tolerance * levels[0]
    return all(abs(a - b) <= nearby for a, b in zip(levels, others, strict=True))
