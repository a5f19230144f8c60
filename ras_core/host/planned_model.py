"""Applies a plan to a model. The module `calibration` uses RAS only through the functions of this module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import nn

from ..config import RASConfig
from ..kv.choose import check_setting
from ..method.grid import TokenGrid
from ..method.plan import Plan
from ..method.regional_cost import RegionalCost
from ..method.schedule import StepKind, StepPlan
from ..method.shares import in_whole_tokens
from ..models import adapter_for, network_of
from ..models.base import ModelAdapter
from ..models.cost import CostProfile, profile_of
from .cache_plan import rows_of_cond, with_others
from .names import KEY
from .patch import last_trace, patch_model


def has_ras(model: ModelPatcher) -> bool:
    """Whether a RAS node has patched this model."""
    return bool(model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY))


def without_ras(model: ModelPatcher) -> ModelPatcher:
    """A clone of the model that samples without RAS."""
    plain = model.clone()
    plain.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    plain.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, KEY)
    return plain


def with_plan(model: ModelPatcher, plan: Plan) -> ModelPatcher:
    """A clone of the model that computes the plan's share of tokens at each step. The plan's noise levels and
    sampler are not set on the clone: the caller passes them when it samples.

    Raises:
        RASError: the model or the plan is not supported.
    """
    return patch_model(model, settings_of(plan))


def ran_as_planned(model: ModelPatcher, plan: Plan) -> bool:
    """Whether the last run of a model from `with_plan` had as many regional steps as planned. It has fewer if
    steps ran dense because memory was short or because another node patches the model.
    """
    return last_trace(model).regional_steps == plan.steps - len(plan.dense_steps)


def settings_of(plan: Plan) -> RASConfig:
    """The settings of a run that, at each step, processes the share of tokens that the plan states.

    Raises:
        RASError: the plan's regional steps have too many different shares of tokens, or the plan names an
            unknown format of the K/V cache.
    """
    check_setting(plan.kv_cache)
    return RASConfig(
        shares=plan.shares,
        corrections=True,
        continue_outputs=True,
        spread=True,
        cuda_graphs="auto",
        kv_cache=plan.kv_cache,
    )


def shares_computed(shares: Sequence[float], model: ModelPatcher, size: Sequence[int]) -> tuple[float, ...]:
    """The shares that the steps of a run compute if they are to compute these, in whole tokens.

    Args:
        size: size of the latent, (H, W) or (1, H, W).
    """
    return in_whole_tokens(shares, n_tokens_of(model, size))


def n_tokens_of(model: ModelPatcher, size: Sequence[int]) -> int:
    """The number of tokens of an image; `size` is that of its latent, (H, W) or (1, H, W)."""
    network = network_of(model.get_model_object("diffusion_model"))
    return TokenGrid.of(size, adapter_for(network).patch_size(network)).n


def regional_cost(
    network: nn.Module, adapter: ModelAdapter, size: Sequence[int], conds: Iterable[Mapping[str, Any]]
) -> RegionalCost:
    """A function that gives a step's cost for its share of tokens: its FLOPs divided by a dense step's FLOPs.

    Args:
        network, adapter: the network and the adapter of its family.
        size: size of the latent, (H, W) or (1, H, W).
        conds: the conditionings; the rows of their text are computed at every step, those of their reference
            images at dense steps.
    """
    n_tokens = TokenGrid.of(size, adapter.patch_size(network)).n
    others = [rows_of_cond(network, adapter, n_tokens, cond) for cond in conds]
    profile, n_others = with_others(profile_of(network, adapter.cost_profile), others)
    return partial(_relative_cost, profile, n_tokens, n_others)


def _relative_cost(profile: CostProfile, n_tokens: int, n_others: int, share: float) -> float:
    dense = profile.step_flops(n_tokens, n_tokens, n_others)
    active = StepPlan(0, StepKind.REGIONAL, share).active_count(n_tokens)
    return profile.step_flops(n_tokens, active, n_others) / dense
