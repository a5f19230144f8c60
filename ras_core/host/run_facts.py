"""What is known of a run before it starts: what its steps cost, and what a plan cannot change."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP

from ..method.regional_cost import RegionalCost
from ..models import adapter_for, network_of
from .known_levels import TOLERANCE
from .measured_runs import simple_levels
from .names import KEY, TRANSFORMER_OPTIONS, WRAPPERS
from .outer_sample import OuterSample
from .planned_model import regional_cost
from .samplers import plan_sampler

NEEDS_PLAN_SAMPLER = (
    "a plan's noise levels need euler or dpmpp_2m, without options such as s_churn and not replaced "
    "by another pack"
)
"""Why the noise levels stay with other samplers."""


def cost_of(given: OuterSample, guider: Any) -> RegionalCost:
    """A function that gives a step's cost for its share of tokens, for the run's model, latent size and
    conditionings.
    """
    network = network_of(guider.model_patcher.get_model_object("diffusion_model"))
    conds = [cond for group in guider.conds.values() for cond in group]
    return regional_cost(network, adapter_for(network), given.noise.shape[2:], conds)


def obstacle(given: OuterSample, guider: Any) -> str | None:
    """Why a plan's noise levels cannot replace the sampler's noise levels; None if nothing prevents this."""
    wrappers = guider.model_options.get(TRANSFORMER_OPTIONS, {}).get(WRAPPERS, {})
    if any(each for key, each in wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}).items() if key != KEY):
        return "another node wraps the sampler and may expect these noise levels"
    if plan_sampler(given.sampler) is None:
        return NEEDS_PLAN_SAMPLER
    levels, model = given.sigmas.tolist(), guider.model_patcher
    if levels[0] > simple_levels(model, 1)[0] * (1 + TOLERANCE) or levels[-1] < 0:
        return "they are outside the range of the model's own noise levels"
    return None
