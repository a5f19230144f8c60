"""The multirate integrator as a sampler of ComfyUI, and which of ComfyUI's samplers it can replace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import trange

from ..config import RASConfig
from ..kv.choose import for_sampler
from ..method.integrator import SOLVERS, Solver
from ..run.sampler import integrate
from ..run.state import RunState
from .names import RUN, TRANSFORMER_OPTIONS

logger = logging.getLogger(__name__)


@torch.no_grad()
def sample_multirate(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> Tensor:
    """The multirate integrator as a sampler function of k-diffusion.

    Args:
        model: (x, sigma) -> denoised estimate, (b, c, H, W).
        x: (b, c, H, W) at the first sigma.
        sigmas: decreasing, ending in 0 or above.
        extra_args: passed to the model; the transformer options in it contain the run's state.
        callback: called once per step with i, x, sigma, sigma_hat and denoised.
        disable: whether to hide the progress bar.
        options: options of the sampler: `solver`, one of SOLVERS; the first by default.
    """
    extra_args = extra_args or {}
    ones = x.new_ones([x.shape[0]])

    def denoise(i: int, x: Tensor) -> Tensor:
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        return denoised

    run = extra_args.get("model_options", {}).get(TRANSFORMER_OPTIONS, {}).get(RUN)
    levels = sigmas.tolist()
    steps = trange(len(levels) - 1, disable=disable)
    return integrate(denoise, x, levels, run, options.get("solver", SOLVERS[0]), steps)


CORRECTED: dict[str, Solver] = {"sample_dpmpp_2m": "dpmpp_2m", "sample_euler": "euler"}
"""ComfyUI's sampler functions that have a multirate form."""

STEADY_SAMPLERS = (*CORRECTED, sample_multirate.__name__)
"""Samplers that add no noise and evaluate once per step, so that the last change of a token's estimate
predicts the next one."""


def multirate_sampler(solver: Solver, inpaint_options: dict | None = None) -> comfy.samplers.KSAMPLER:
    """The multirate integrator as a SAMPLER."""
    return comfy.samplers.KSAMPLER(sample_multirate, {"solver": solver}, inpaint_options or {})


def corrected(sampler: Any, run: RunState) -> Any:
    """The multirate form of a sampler that has one; other samplers unchanged."""
    name = _name_of(sampler)
    if not run.config.corrections or not run.is_regional or name == sample_multirate.__name__:
        return sampler
    if obstacle := _correction_obstacle(sampler):
        logger.info("Multirate RAS: regions are selected but not corrected: %s.", obstacle)
        return sampler
    return multirate_sampler(CORRECTED[name], sampler.inpaint_options)


def plan_sampler(sampler: Any) -> str | None:
    """The sampler, euler or dpmpp_2m, whose plans fit this one; None if no plan fits."""
    name = _name_of(sampler)
    if name == sample_multirate.__name__:
        solver = sampler.extra_options.get("solver", SOLVERS[0])
        return "dpmpp_2m" if solver == "ab2" else solver  # both are second order: the same steps suit them
    return None if _correction_obstacle(sampler) else name.removeprefix("sample_")


def is_corrected(sampler: Any, config: RASConfig) -> bool:
    """Whether a run with this sampler corrects tokens that become active again."""
    is_ours = _name_of(sampler) == sample_multirate.__name__
    return is_ours or (config.corrections and _correction_obstacle(sampler) is None)


def _correction_obstacle(sampler: Any) -> str | None:
    """Why the multirate form cannot replace a sampler, or None."""
    name = _name_of(sampler)
    if name not in CORRECTED:
        return "this sampler has no multirate form"
    is_plain = type(sampler) is comfy.samplers.KSAMPLER
    if not is_plain or sampler.sampler_function is not getattr(comfy.k_diffusion.sampling, name, None):
        return "another pack replaces this sampler with its own"
    if sampler.extra_options:  # they may add noise: euler's s_churn
        return "this sampler has options that its multirate form does not support"
    return None


def cache_for(sampler: Any, config: RASConfig) -> str:
    """The user's setting of `kv_cache`, or its replacement if the sampler adds noise."""
    wanted = for_sampler(config.kv_cache, adds_noise=_name_of(sampler) not in STEADY_SAMPLERS)
    if wanted != config.kv_cache:
        logger.info(
            "Multirate RAS: kv_cache = %s supports euler and dpmpp_2m only; using %s for this sampler.",
            config.kv_cache, wanted,
        )  # fmt: skip
    return wanted


def _name_of(sampler: Any) -> str:
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")
