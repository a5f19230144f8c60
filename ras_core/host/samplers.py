"""Makes the multirate integrator a sampler of ComfyUI, and decides which of ComfyUI's samplers the integrator
replaces in a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling
from torch import Tensor

from ..config import RASConfig
from ..kv.choose import for_sampler
from ..method.integrator import SOLVERS, Solver
from ..run.sampler import Start, integrate, time_of
from ..run.state import RunState
from .names import RUN, TRANSFORMER_OPTIONS
from .sampler_steps import Evaluations, counted

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
    """The multirate integrator as a sampler function with the parameters of k-diffusion's sampler functions.

    Args:
        model: (x, sigma) -> denoised estimate, (b, c, H, W).
        x: the noisy latent at the first sigma, (b, c, H, W).
        sigmas: the noise levels in decreasing order; the last one is 0 or above.
        extra_args: further arguments for the model. Their transformer options contain the run's state.
        callback: called once per step with a dict of i, x, sigma, sigma_hat and denoised.
        disable: whether to hide the progress bar.
        options: options of the sampler. The only option is `solver`, one of SOLVERS; the default is the
            first.
    """
    extra_args, solver = extra_args or {}, options.get("solver", SOLVERS[0])
    run = extra_args.get("model_options", {}).get(TRANSFORMER_OPTIONS, {}).get(RUN)
    levels, start, known, first = sigmas.tolist(), Start.at(x, run), {}, 0
    plain = None if run is None else getattr(sampling, f"sample_{solver}", None)
    with sampling.trange(len(levels) - 1, disable=disable) as bar:
        if plain is not None:
            dense = DenseSteps(model, run, levels, start, bar.update)
            try:
                return plain(dense, x, sigmas, extra_args=extra_args, callback=callback, disable=True)
            except FirstRegional:
                first = dense.number
                known[first] = dense.denoised
        evaluate = Evaluations(model, sigmas, levels, extra_args, callback, known)
        result = integrate(evaluate, start, levels, run, solver, counted(first, len(levels) - 1, bar.update))
        evaluate.report_last(result)
        return result


class FirstRegional(Exception):
    """Raised to end ComfyUI's sampler after the run's first evaluation that processed active tokens only."""


class DenseSteps:
    """The model that is given to ComfyUI's own sampler. ComfyUI's sampler computes all steps before the first
    regional step. So if a run has no regional step in the end, its latent is bit-identical to that of a run
    without RAS.

    Args:
        model: (x, sigma) -> denoised estimate, (b, c, H, W).
        run: state of the run.
        levels: the run's noise levels.
        start: the state from which the multirate integrator continues; updated at each evaluation.
        count: called after each dense step.

    Attributes:
        number: number of dense steps that have been evaluated.
        denoised: the denoised estimate of the first regional evaluation; None before.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        run: RunState,
        levels: list[float],
        start: Start,
        count: Callable[[], object],
    ):
        self.number, self.denoised = 0, None
        self._model, self._run, self._levels, self._start, self._count = model, run, levels, start, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        run, start = self._run, self._start
        level, start.x, start.evaluations = self._levels[self.number], x, run.evaluations
        run.known_sigma = level
        denoised = self._model(x, sigma, **extra_args)
        if run.evaluations == start.evaluations:  # another node returned a guess: keep it out of the history
            if run.evaluations:  # before the first one, a step cache has nothing to return
                run.skip_evaluation()
            start.fresh_before = torch.zeros_like(x[:, :1], dtype=torch.bool)
        elif run.active_idx is not None:
            self.denoised = denoised
            raise FirstRegional
        else:
            start.history, start.fresh_before = start.history.after(x, denoised.clone(), time_of(level)), None
        self.number += 1
        self._count()
        return denoised


CORRECTED: dict[str, Solver] = {"sample_dpmpp_2m": "dpmpp_2m", "sample_euler": "euler"}
"""By name, the ComfyUI sampler functions that the multirate integrator can replace, and the integrator's
solver for each."""

STEADY_SAMPLERS = (*CORRECTED, sample_multirate.__name__)
"""Samplers that add no noise and evaluate the model once per step. With these samplers, the last change of a
token's denoised estimate predicts the estimate's next change. So K/V formats that extrapolate along the last
change can be used."""


OWN_LEVELS = ("dpm_fast_function", "dpm_adaptive_function")
"""Names of ComfyUI's sampler functions that choose steps of their own instead of the schedule's steps."""


def follows_schedule(sampler: Any) -> bool:
    """Whether the steps that a sampler reports to its callback are the steps of the schedule. This is assumed
    of all samplers except those in OWN_LEVELS.
    """
    return _name_of(sampler) not in OWN_LEVELS


def multirate_sampler(solver: Solver, inpaint_options: dict | None = None) -> comfy.samplers.KSAMPLER:
    """The multirate integrator as a SAMPLER object of ComfyUI."""
    return comfy.samplers.KSAMPLER(sample_multirate, {"solver": solver}, inpaint_options or {})


def sampler_of_run(sampler: Any, run: RunState, solver: Solver | None = None) -> Any:
    """The SAMPLER for a run: the multirate integrator or the user's own sampler.

    The multirate integrator is used if it can replace the user's sampler, and if in addition either the run
    is regional with corrections, or the run's plan asks for a solver other than that of the user's sampler.

    Args:
        sampler: the user's SAMPLER.
        run: state of the run.
        solver: the solver that the run's plan asks for; None for the solver of the user's sampler.
    """
    name, obstacle = _name_of(sampler), _correction_obstacle(sampler)
    if obstacle is None and solver not in (None, CORRECTED[name]):
        return multirate_sampler(solver, sampler.inpaint_options)
    if not run.config.corrections or not run.is_regional or name == sample_multirate.__name__:
        return sampler
    if obstacle is not None:
        logger.info("Multirate RAS: errors in skipped regions are not corrected: %s.", obstacle)
        return sampler
    return multirate_sampler(CORRECTED[name], sampler.inpaint_options)


def plan_solver(sampler: Any, solver: Solver) -> Solver | None:
    """The solver of a plan, or None if the user chose RAS Multirate Sampler, whose own solver is kept."""
    return None if _name_of(sampler) == sample_multirate.__name__ else solver


def plan_sampler(sampler: Any) -> str | None:
    """Which plans suit `sampler`: the name of the sampler for which they were made, "euler" or "dpmpp_2m".
    None if no plan suits it.
    """
    name = _name_of(sampler)
    if name == sample_multirate.__name__:
        solver = sampler.extra_options.get("solver", SOLVERS[0])
        return "dpmpp_2m" if solver == "ab2" else solver  # ab2 and dpmpp_2m are both second order
    return None if _correction_obstacle(sampler) else name.removeprefix("sample_")


def is_corrected(sampler: Any, config: RASConfig) -> bool:
    """Whether a run with this sampler corrects tokens that become active again after they were cached. To
    correct such a token, the integrator repeats the step since the token's last evaluation, with the new
    estimate (method/integrator.py).
    """
    is_ours = _name_of(sampler) == sample_multirate.__name__
    return is_ours or (config.corrections and _correction_obstacle(sampler) is None)


def _correction_obstacle(sampler: Any) -> str | None:
    """Why the multirate integrator cannot replace a sampler; None if it can."""
    name = _name_of(sampler)
    if name not in CORRECTED:
        return "this is only possible with the samplers euler and dpmpp_2m"
    is_plain = type(sampler) is comfy.samplers.KSAMPLER
    if not is_plain or sampler.sampler_function is not getattr(sampling, name, None):
        return "another pack replaces this sampler with its own"
    if sampler.extra_options:  # options may add noise, as euler's s_churn does
        return "this is not possible with the options of this sampler (such as s_churn)"
    return None


def cache_for(sampler: Any, config: RASConfig) -> str:
    """The format of the K/V cache for a run with this sampler: the user's setting of `kv_cache`, with one
    exception. Formats that extrapolate keys and values work with STEADY_SAMPLERS only. If the user's setting
    is such a format, and the sampler is not one of STEADY_SAMPLERS, a format that does not extrapolate is
    returned.
    """
    wanted = for_sampler(config.kv_cache, adds_noise=_name_of(sampler) not in STEADY_SAMPLERS)
    if wanted != config.kv_cache:
        logger.info(
            "Multirate RAS: kv_cache = %s supports euler and dpmpp_2m only; using %s for this sampler.",
            config.kv_cache, wanted,
        )  # fmt: skip
    return wanted


def _name_of(sampler: Any) -> str:
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")
