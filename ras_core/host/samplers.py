"""ComfyUI's samplers: which of them have a multirate form, and that form as a sampler of ComfyUI's."""

from __future__ import annotations

import logging
from typing import Any

import comfy.samplers

from ..config import KVCache, RASConfig
from ..run.sampler import sample_multirate
from ..run.state import RunState

logger = logging.getLogger(__name__)

CORRECTED_ORDERS = {"sample_euler": 1, "sample_dpmpp_2m": 2}
STEADY_SAMPLERS = (*CORRECTED_ORDERS, sample_multirate.__name__)
"""Samplers that add no noise and evaluate once a step: a token's last change tells of its next one."""


def multirate_sampler(order: int, inpaint_options: dict | None = None) -> comfy.samplers.KSAMPLER:
    """The multirate integrator as one of ComfyUI's samplers."""
    return comfy.samplers.KSAMPLER(sample_multirate, {"order": order}, inpaint_options or {})


def corrected(sampler: Any, run: RunState) -> Any:
    """The multirate integrator instead of a sampler that has one of its order; others unchanged."""
    if not run.config.corrections or not run.is_regional:
        return sampler
    order = CORRECTED_ORDERS.get(_name_of(sampler))
    if order is None:
        logger.info(
            "Multirate RAS: this sampler has no corrected form; only the selection of regions applies."
        )
        return sampler
    return multirate_sampler(order, sampler.inpaint_options)


def cache_for(sampler: Any, config: RASConfig) -> KVCache:
    """The user's setting of `kv_cache`, except that noise which a sampler adds cannot be extrapolated."""
    if config.kv_cache != "forecast" or _name_of(sampler) in STEADY_SAMPLERS:
        return config.kv_cache
    logger.info("Multirate RAS: kv_cache = forecast is for euler and dpmpp_2m; here it works as gpu.")
    return "gpu"


def _name_of(sampler: Any) -> str:
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")
