"""Samplers that ComfyUI does not have, with the signature of k-diffusion's sampler functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ras_core.method.adams import GRADUAL, LAST_WEIGHT


def weight_of(ratio: float) -> float:
    """`adams_weight` of ras_core for one number: `ratio` is the length of a step divided by that of the
    previous step.
    """
    return min(ratio, 1.0, GRADUAL / ratio)


@torch.no_grad()
def sample_ab2(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    weigh: Callable[[float], float] = weight_of,
    last: float = LAST_WEIGHT,
) -> Tensor:
    """Second-order Adams-Bashforth method with bounded extrapolation (`adams_step` of ras_core), in which all
    tokens are evaluated at each step.

    The velocity of the latent x is v = (x - D) / sigma, where D is the denoised estimate. A step leads from x
    to x' = x + h (v + w (v - v_before) / 2). Here h is the change of sigma in this step, v_before the
    velocity at the previous step, and w the weight that `weigh` gives, multiplied by `last` in the step to
    noise level 0. The first step is an Euler step.

    Args:
        model: called with (x, sigma), returns the denoised estimate D, (b, c, H, W).
        x: noisy latents (b, c, H, W) at the first noise level.
        sigmas: decreasing noise levels, the last of them 0.
        extra_args: keyword arguments that are passed to the model.
        callback: called once per step with a dictionary: i (number of the step), x, sigma, sigma_hat (equal
            to sigma in this sampler) and denoised (D).
        disable: ignored, since there is no progress bar.
        weigh: function from the length of a step, divided by that of the step before, to the weight w.
        last: factor of w in the step to noise level 0.
    """
    levels = sigmas.tolist()
    ones = x.new_ones([x.shape[0]])
    before: tuple[Tensor, float] | None = None
    for i, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        denoised = model(x, sigmas[i] * ones, **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        velocity, step = (x - denoised) / level, following - level
        slope = velocity
        if before is not None:
            weight = weigh(step / before[1]) * (last if following == 0 else 1.0)
            slope = velocity + (velocity - before[0]) * (weight / 2)
        x, before = x + step * slope, (velocity, step)
    return x


sample_unbounded_ab2 = partial(sample_ab2, weigh=lambda ratio: ratio, last=1.0)
"""The usual second-order Adams-Bashforth method: the weight is the ratio of the lengths, however large, in
the last step too."""

OWN_SAMPLERS = {"ab2": sample_ab2, "ab2_unbounded": sample_unbounded_ab2}
"""By name in cells: samplers that ComfyUI does not have."""
