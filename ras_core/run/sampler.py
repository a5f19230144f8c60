"""The multirate sampler: k-diffusion's calling form, method/integrator.py's mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from ..method.integrator import History, advance, multirate_step
from .state import RunState

RUN = "multirate_ras_run"
"""Key under which a run's state stands in its transformer options."""


@torch.no_grad()
def sample_multirate(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    order: int = 2,
) -> Tensor:
    """Integrate from the first sigma to the last, each token with steps of its own.

    Without RAS on the model every token is fresh at every step: order 1 is then Euler, and order 2 is
    DPM-Solver++(2M).

    Args:
        model: gives the denoised estimate (b, c, H, W) for (x, sigma).
        x: (b, c, H, W) at the first sigma.
        sigmas: decreasing, ending in 0 or above.
        extra_args: handed to the model; the run's state is found in its transformer options.
        callback: called once a step with i, x, sigma, sigma_hat and denoised.
        disable: no progress bar.
        order: 1 or 2.
    """
    extra_args = extra_args or {}
    levels = sigmas.tolist()
    run = extra_args.get("model_options", {}).get("transformer_options", {}).get(RUN)
    ones = x.new_ones([x.shape[0]])
    history, fresh_before, evaluations = History.empty(x), None, 0
    for i in trange(len(levels) - 1, disable=disable):
        if run is not None:
            run.known_sigma = levels[i]
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        t, t_next = _time(levels[i]), _time(levels[i + 1])
        if run is not None and run.evaluations == evaluations:
            # A step cache skipped the evaluation: its estimate is a guess and belongs in no history.
            x, fresh_before = advance(x, denoised, t_next - t), torch.zeros_like(x[:, :1], dtype=torch.bool)
            continue
        evaluations = run.evaluations if run is not None else 0
        fresh = fresh_pixels(run)
        stale = None if fresh_before is None else ~fresh_before
        step_order = order if math.isfinite(t_next) else 1  # at sigma 0 the estimate itself is the answer
        history, x = multirate_step(history, x, denoised, (t, t_next), fresh, stale, step_order)
        fresh_before = fresh
    return x


def fresh_pixels(run: RunState | None) -> Tensor | None:
    """Latent pixels that the last evaluation computed: (b, 1, H, W) bool; None for all."""
    return None if run is None else run.active_pixels


def _time(sigma: float) -> float:
    return -math.log(sigma) if sigma > 0 else math.inf
