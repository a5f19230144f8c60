"""Applies a plan to a model. Calibration uses RAS only through this module."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..config import RASConfig
from ..errors import RASError
from ..method.plan import Plan
from .names import KEY
from .patch import last_trace, patch_model


def has_ras(model: ModelPatcher) -> bool:
    """Whether a RAS node has patched this model."""
    return bool(model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY))


def without_ras(model: ModelPatcher) -> ModelPatcher:
    """A clone that samples without RAS."""
    plain = model.clone()
    plain.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    return plain


def with_plan(model: ModelPatcher, plan: Plan) -> ModelPatcher:
    """A clone that computes the plan's shares; the caller provides the sampler and the noise levels.

    Raises:
        RASError: the model or the plan is not supported.
    """
    return patch_model(model, settings_of(plan))


def ran_as_planned(model: ModelPatcher, plan: Plan) -> bool:
    """Whether the last run of a model from `with_plan` had as many regional steps as planned. Steps may be
    dense because memory is short or because of another patch of the model.
    """
    return last_trace(model).regional_steps == plan.steps - len(plan.dense_steps)


def settings_of(plan: Plan) -> RASConfig:
    """The settings with which a run computes the plan's shares.

    Raises:
        RASError: the regional steps have different shares.
    """
    regional = {step: share for step, share in enumerate(plan.shares) if share < 1}
    if len(set(regional.values())) > 1:
        raise RASError(
            "a plan whose regional steps have different shares of tokens.",
            "one share for all regional steps.",
            "calibrate again with this version of the pack.",
        )
    start = min(regional, default=plan.steps)
    return RASConfig(
        sample_ratio=next(iter(regional.values()), 1.0),
        start_step=start,
        error_reset_every=0,
        dense_steps=tuple(step for step in plan.dense_steps if step > start),
        corrections=True,
        cuda_graphs="auto",
        kv_cache=plan.kv_cache,
    )
