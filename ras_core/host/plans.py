"""Finds the plans of a model, and computes noise levels from a plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import RASError
from ..method.family_plans import family_plans
from ..method.few_steps import STAYS_OUT, is_few, steps_for
from ..method.plan import PLAN_SAMPLERS, PLAN_SPEEDS, Plan
from ..method.plan_set import ELSEWHERE, PlanSet
from ..models import adapter_for, network_of
from ..models.base import ModelAdapter
from .fingerprint import fingerprint
from .measured_runs import simple_levels
from .plan_files import saved_plans
from .planned_model import has_ras

__all__ = [
    "PLAN_SAMPLERS", "PLAN_SPEEDS", "adapter_of", "connected_plans", "levels_of", "planned_levels",
    "plans_for",
]  # fmt: skip

logger = logging.getLogger(__name__)

OTHER_MODEL = (
    "the connected plans were calibrated on another model (other weights, LoRAs or noise levels), so speed "
    "and closeness may differ; calibrate this model"
)

FINE_LEVELS = 200
"""Steps of the fine schedule from which a plan's noise levels are interpolated. A `simple` schedule
repeats levels if it has more steps than the model defines noise levels; every model defines at least 200."""

EVEN_LEVELS = 199
"""Steps of the fine schedule that RAS Scheduler uses for a plan with an even grid, instead of FINE_LEVELS.

The number is prime, so a run's number of steps does not divide it. Therefore the levels of RAS Scheduler are
interpolated between levels of the fine schedule, and never equal those of a `simple` schedule. A run must be
able to distinguish RAS Scheduler's levels from a `simple` schedule: it shortens a `simple` schedule to the
plan's number of steps, but leaves RAS Scheduler's levels unchanged, because they already are the plan's."""


def plans_for(model: ModelPatcher, size: Sequence[int] | None = None) -> PlanSet:
    """The plans that were measured on this model, or else those of its family.

    Args:
        model: any MODEL.
        size: height and width of the latent; None to use the plans measured last, whatever their size.
    """
    return saved_plans(model, size) or plans_of_family(model)


def connected_plans(plans: PlanSet, model: ModelPatcher) -> PlanSet:
    """Plans that the user has connected to a node; their origins tell if they are those of another model."""
    is_other = plans.model and plans.model != fingerprint(model)
    return plans.of_another_model() if is_other else plans


def plans_of_family(model: ModelPatcher) -> PlanSet:
    """The plans of a model's family, which were not measured on this model."""
    return family_plans(family_of(model))


def family_of(model: ModelPatcher) -> str | None:
    """The name of the model's family, which is that of the adapter's module; None if RAS does not support
    the model.
    """
    adapter = adapter_of(model)
    return None if adapter is None else type(adapter).__module__.rpartition(".")[2]


def adapter_of(model: ModelPatcher) -> ModelAdapter | None:
    """The adapter of a model's network; None if RAS does not support it."""
    try:
        return adapter_for(network_of(model.get_model_object("diffusion_model")))
    except RASError:
        return None


def planned_levels(
    model: ModelPatcher, plans: PlanSet, choice: tuple[str, str], steps: int, denoise: float = 1.0
) -> tuple[float, ...]:
    """The noise levels of the best plan for a speed. If no RAS node has patched the model, only plans without
    regional steps are considered. A run with few steps keeps the levels of the model's `simple` schedule.

    Args:
        model: any MODEL.
        plans: the plans to choose from.
        choice: speed and sampler.
        steps: number of steps of a dense run.
        denoise: as in KSampler, i.e. the levels start where those of a KSampler with `steps` and `denoise`
            start. With denoise 0, there are no noise levels.

    Raises:
        RASError: there is no plan for this choice.
    """
    if denoise <= 0:
        return ()
    whole = steps_for(steps, denoise)
    plan = (plans.for_run if has_ras(model) else plans.plain_for_run)(*choice, whole)
    if is_few(whole):
        logger.info("Multirate RAS: noise levels of the schedule simple: %s.", STAYS_OUT)
        return simple_part(model, steps, denoise)
    if ELSEWHERE in plan.origin:
        logger.warning("Multirate RAS: %s.", OTHER_MODEL)
    levels = levels_of(model, plan, steps, denoise)
    said = plan.resized(steps).describe()
    logger.info("Multirate RAS: noise levels of the plan %s (%s; %s).", said, plan.sampler, plan.origin)
    return levels


def levels_of(model: ModelPatcher, plan: Plan, steps: int, denoise: float = 1.0) -> tuple[float, ...]:
    """The plan's noise levels, which replace the noise levels of a dense run of `steps` steps."""
    return plan.levels_of_part(made_levels(model, plan), simple_part(model, steps, denoise))


def simple_part(model: ModelPatcher, steps: int, denoise: float) -> tuple[float, ...]:
    """The noise levels of a KSampler with `steps`, `denoise` and the scheduler `simple`."""
    return simple_levels(model, steps_for(steps, denoise))[-(steps + 1) :]


def made_levels(model: ModelPatcher, plan: Plan) -> tuple[float, ...]:
    """The fine schedule from which `levels_of` makes a plan's levels."""
    return simple_levels(model, EVEN_LEVELS if plan.has_even_grid else FINE_LEVELS)


def planned_sigmas(plan: Plan, given: Tensor, model: ModelPatcher) -> Tensor:
    """The plan's noise levels, which replace those of a run, `given`. The result has the dtype and the
    device of `given`, and exactly its first and last value.

    Unlike `levels_of`, it uses FINE_LEVELS for even grids too: plans were measured on these levels, and no
    run has to recognise them.
    """
    levels = plan.levels_of_part(simple_levels(model, FINE_LEVELS), given.tolist())
    made = torch.tensor(levels, dtype=given.dtype, device=given.device)
    made[0], made[-1] = given[0], given[-1]
    return made
