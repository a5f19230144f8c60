"""Finds the plans of a model, and computes noise levels from a plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy.model_patcher import ModelPatcher

from ..errors import RASError
from ..method.family_plans import family_plans
from ..method.plan import PLAN_SAMPLERS, PLAN_SPEEDS, Plan
from ..method.plan_set import PlanSet
from ..models import adapter_for, network_of
from ..models.base import ModelAdapter
from .measured_runs import simple_levels
from .plan_files import saved_plans
from .planned_model import has_ras

__all__ = ["PLAN_SAMPLERS", "PLAN_SPEEDS", "adapter_of", "levels_of", "planned_levels", "plans_for"]

logger = logging.getLogger(__name__)

FINE_LEVELS = 200
"""Steps of the fine schedule from which a plan's noise levels are interpolated; no model has fewer."""

EVEN_LEVELS = 199
"""As FINE_LEVELS, for RAS Scheduler and a plan with an even grid. It is prime, so that these levels never
equal a `simple` schedule: a run must tell them apart, as it shortens the schedule but not these levels."""


def plans_for(model: ModelPatcher, size: Sequence[int] | None = None) -> PlanSet:
    """The plans that were measured on this model, or else those of its family.

    Args:
        model: any MODEL.
        size: height and width of the latent; None for the plans that were measured last, at any size.
    """
    return saved_plans(model, size) or plans_of_family(model)


def plans_of_family(model: ModelPatcher) -> PlanSet:
    """The plans of a model's family, which were not measured on this model."""
    adapter = adapter_of(model)
    return family_plans(None if adapter is None else type(adapter).__module__.rpartition(".")[2])


def adapter_of(model: ModelPatcher) -> ModelAdapter | None:
    """The adapter of a model's network; None if RAS does not support it."""
    try:
        return adapter_for(network_of(model.get_model_object("diffusion_model")))
    except RASError:
        return None


def planned_levels(
    model: ModelPatcher, plans: PlanSet, choice: tuple[str, str], steps: int, denoise: float = 1.0
) -> tuple[float, ...]:
    """The noise levels of the best plan for a speed; of the best plain plan if the model has no RAS node.

    Args:
        model: any MODEL.
        plans: the plans to choose from.
        choice: speed and sampler.
        steps: number of steps of a dense run.
        denoise: as in KSampler; the first level is the one at which KSampler starts `steps` steps. With 0
            there are no levels.

    Raises:
        RASError: there is no plan for this choice.
    """
    if denoise <= 0:
        return ()
    plan = plans.best(*choice, plain=not has_ras(model))
    levels = levels_of(model, plan, steps, denoise)
    said = plan.resized(steps).describe()
    logger.info("Multirate RAS: noise levels for %s (%s; %s).", said, plan.sampler, plan.origin)
    return levels


def levels_of(model: ModelPatcher, plan: Plan, steps: int, denoise: float = 1.0) -> tuple[float, ...]:
    """The plan's noise levels, which replace those of `steps` dense steps."""
    total = steps if denoise >= 1 else int(steps / denoise)
    given = simple_levels(model, total)[-(steps + 1) :]
    return plan.levels_of_part(made_levels(model, plan), given)


def made_levels(model: ModelPatcher, plan: Plan) -> tuple[float, ...]:
    """The fine schedule from which `levels_of` makes a plan's levels."""
    return simple_levels(model, EVEN_LEVELS if plan.has_even_grid else FINE_LEVELS)
