"""Recognises where the noise levels of a run come from: RAS Scheduler, a scheduler of ComfyUI, or neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from ..method.few_steps import FEW_STEPS, is_few, whole_run_steps
from ..method.plan import Plan
from ..method.plan_set import PlanSet
from ..method.sigma_grid import mass_between, position_at
from .measured_runs import simple_levels
from .plans import FINE_LEVELS, made_levels

Levels = Sequence[float]

TOLERANCE = 1e-5
"""Two noise levels count as the same if they differ by at most this fraction of the schedule's first level,
because samplers store noise levels in float32."""

ROUNDING = 1e-3
"""The same for the measured grid of a whole schedule, whose levels other nodes may have rounded to float16 or
scaled a little. Other whole schedules are farther from it; even grids and short parts may be nearer to each
other."""


def plan_of_grid(plans: PlanSet, speed: str, model: ModelPatcher, levels: Levels) -> Plan | None:
    """The plan from which RAS Scheduler has made `levels`; None if they are those of a scheduler of ComfyUI,
    or of no plan.

    All plans are tried, those of the run's `speed` first, because the user may have chosen another speed or
    sampler on RAS Scheduler. The result is None for a single step: it has no levels between the first and the
    last, so nothing shows where it comes from, and it cannot be replaced by fewer.
    """
    steps = len(levels) - 1
    if steps == 1 or any(_are_same(levels, whole) for whole in _schedules(model, steps)):
        return None
    is_whole = _are_whole(model, levels)
    tried: dict[tuple[float, ...], Plan] = {}
    for plan in sorted(plans.plans, key=lambda plan: plan.speed != speed):
        tried.setdefault(plan.density, plan)
    for plan in tried.values():
        grid = plan.on_grid(steps).grid_between(made_levels(model, plan), levels)
        tolerance = ROUNDING if is_whole and not plan.has_even_grid else TOLERANCE
        if _are_same(levels, grid, tolerance):
            return plan
    return None


def have_few_steps(model: ModelPatcher, levels: Levels) -> bool:
    """Whether `levels` are those of a schedule with few steps, or a part of one. Only the steps of a part of
    the `simple` schedule show how many the whole schedule has; the other schedules are tried one by one.
    """
    if is_few(steps_of_whole(model, levels)):
        return True
    steps = len(levels) - 1
    return any(
        _are_same(levels, whole[first : first + steps + 1])
        for total in range(steps, FEW_STEPS + 1)
        for whole in _schedules(model, total)
        for first in range(len(whole) - steps)
    )


def steps_of_whole(model: ModelPatcher, levels: Levels) -> float:
    """The number of steps of the whole schedule of which `levels` are a part, judged by the `simple` one."""
    return whole_run_steps(simple_levels(model, FINE_LEVELS), levels)


def full_steps_of_grid(plan: Plan, model: ModelPatcher, levels: Levels) -> float:
    """The number of steps that RAS Scheduler was asked for when it made the plan's levels, of which these are
    all or a part.
    """
    fine = made_levels(model, plan)
    start, end = (position_at(fine, level) for level in (levels[0], levels[-1]))
    part = max(mass_between(plan.density, start, end), 1e-3)  # of the plan's steps
    return (len(levels) - 1) * plan.full_steps / plan.steps / part


def are_custom(model: ModelPatcher, levels: Levels) -> bool:
    """Whether `levels` begin and end as a whole schedule does, but are not those of any scheduler."""
    steps = len(levels) - 1
    # ddim_uniform may make up to two steps more than it is asked for.
    asked = range(max(steps - 2, 1), steps + 1)
    return _are_whole(model, levels) and not any(
        _are_same(levels, whole, ROUNDING) for total in asked for whole in _schedules(model, total)
    )


def begins_with_noise(model: ModelPatcher, levels: Levels) -> bool:
    """Whether the first level is that of pure noise, as with denoise 1."""
    return abs(levels[0] - simple_levels(model, 1)[0]) <= ROUNDING * levels[0]


def _are_whole(model: ModelPatcher, levels: Levels) -> bool:
    """Whether levels begin and end as a whole schedule does."""
    return begins_with_noise(model, levels) and levels[-1] <= ROUNDING * levels[0]


def _schedules(model: ModelPatcher, steps: int) -> Iterator[list[float]]:
    """The noise levels that KSampler uses for this number of steps, of each scheduler: for most samplers, and
    for those that leave out the last level above 0 of a schedule with one more step.
    """
    sampling = model.get_model_object("model_sampling")
    for name in comfy.samplers.SCHEDULER_HANDLERS:
        try:
            whole, longer = (
                comfy.samplers.calculate_sigmas(sampling, name, count).tolist()
                for count in (steps, steps + 1)
            )
        except Exception:  # another pack's scheduler, which may not know this model
            continue
        yield whole
        yield [*longer[:-2], *longer[-1:]]


def _are_same(levels: Levels, others: Levels, tolerance: float = TOLERANCE) -> bool:
    nearby = tolerance * levels[0]
    return len(levels) == len(others) and all(
        abs(a - b) <= nearby for a, b in zip(levels, others, strict=True)
    )
