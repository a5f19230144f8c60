"""Multirate integration: each token takes its own steps through the same ODE.

While a token is cached, it keeps its last denoised estimate D. So the steps of the run from its last
evaluation to its next are together one long first-order step of this token. In its exponential form, with
t = -log sigma, the flow's ODE is

    dx/dt = D(x, t) - x

and its solution for constant D is an Euler step in sigma (paper, eq. 3):

    x(t + h) = e^-h x(t) + (1 - e^-h) D

This module improves these first-order steps by two corrections, which need no extra evaluations:

    fresh token    A token that is evaluated at this step. With `euler`, its step stays of first order. With
                   `dpmpp_2m` it is of second order: D is extrapolated along its last slope to the middle of
                   the step, as in DPM-Solver++(2M). With `ab2` it is of second order too (adams.py). If steps
                   are long, results of `ab2` are nearer to the converged image.
    stale token    A token that was not evaluated at the step before. When it is evaluated again, its long
                   step since its last evaluation is repeated, with D linear in t between the two evaluations
                   (trapezoid in exponential form).

Both corrections are valid for steps of unequal length. A token that was evaluated at the step before must not
get the correction of stale tokens: that correction accounts for the change of D during a first-order step,
and the token's second-order step has accounted for this change already.

`continued_step` also forecasts the estimates D of stale tokens, linearly in sigma from their last two
evaluations:

    D' = D + f
    f = g (D - D_before) (sigma_last - sigma) / (sigma_before - sigma_last)

D' is the forecast estimate at the current sigma, and f the forecast change. D and D_before are the estimates
of the last two evaluations, at sigma_last and sigma_before. The gain g, 0 to 1, is fitted for each image to
the fresh tokens of the same step, whose new estimates are known: their own forecast changes, multiplied by g,
match the changes to these new estimates best. At each step at which a stale token is not evaluated, its state
is computed again by one long step from its last evaluation to the start of this step, with D linear in t from
the last estimate to D'. From this state, the token takes the step with the estimate that is forecast for the
middle of the step. Forecasts are not stored in the history: when the token is evaluated again, its long step
is repeated with its true estimates, as above.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .adams import adams_step
from .history import History

Solver = Literal["dpmpp_2m", "euler", "ab2"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
"""The methods by which fresh tokens are integrated: euler is of first order; dpmpp_2m and ab2
(Adams-Bashforth in sigma) are of second order."""

FARTHEST = 8.0
"""Upper bound of the change that is forecast for a token, in multiples of the token's last change."""

STEEPEST = 4.0
"""Upper bound of the second of two forecast changes, in multiples of the first. The first is the change from
the token's last evaluation to the start of a step, the second the change from there to the step's middle."""


def advance(x: Tensor, d: Tensor, h: Tensor | float) -> Tensor:
    """The state after a time h, from the exact solution of dx/dt = D - x for constant D."""
    # For a float, exp is computed on the CPU: copying h to a GPU as a tensor would synchronize.
    if isinstance(h, float):
        decay = math.exp(-h)
        return (x * decay).add_(d * (1 - decay))
    decay = h.neg().exp_()
    return (decay * x).add_((1 - decay) * d)


def second_order_estimate(history: History, h: float) -> Tensor:
    """D in the middle of the next step, of length h, extrapolated from the last two evaluations."""
    span = history.t - history.t_before  # inf after a first evaluation: the result is D
    return ((history.d - history.d_before) / span).mul_(h / 2).add_(history.d)


def redo_long_step(history: History, d: Tensor, t: float) -> Tensor:
    """The state at time t, (b, c, H, W), after one long step from each pixel's last evaluation. Over this
    step, D changes linearly in t from the estimate of that evaluation to `d`.
    """
    span = t - history.t
    safe = span.clamp_min(1e-6)
    weight = (safe - 1).add_(safe.neg().exp_()).div_(safe)
    return advance(history.x, history.d, span).add_((d - history.d) * weight)


def multirate_step(
    history: History,
    x: Tensor,
    d: Tensor,
    times: tuple[float, float],
    masks: tuple[Tensor | None, Tensor | None],
    solver: Solver,
) -> tuple[History, Tensor]:
    """Integrate all tokens over one step. Fresh tokens advance by `solver`, cached tokens with their last
    estimate. For tokens that are evaluated again after a pause, the past long step is corrected first.

    Args:
        history: the evaluations before the one at the start of this step.
        x: (b, c, H, W) state at the start of this step.
        d: (b, c, H, W) denoised estimate of that state; for cached tokens, their last estimate.
        times: start and end of this step.
        masks: (b, 1, H, W) bool each: pixels that are evaluated at this step (None if all are); and pixels
            that were not evaluated at the preceding step (None if all were).
        solver: the method by which fresh tokens are integrated.

    Returns:
        The new history, and the state at the next step's start.
    """
    (t, t_next), (fresh, stale) = times, masks
    if stale is not None:
        returned = stale if fresh is None else fresh & stale
        x = torch.where(returned, redo_long_step(history, d, t), x)
    after, h = history.after(x, d, t, fresh), t_next - t
    if solver == "ab2":
        ahead = adams_step(history, x, d, t, t_next)
        return after, ahead if fresh is None else torch.where(fresh, ahead, advance(x, after.d, h))
    target = after.d
    if solver == "dpmpp_2m" and math.isfinite(h):  # at sigma 0, its result is the estimate itself
        ahead = second_order_estimate(after, h)
        target = ahead if fresh is None else torch.where(fresh, ahead, target)
    return after, advance(x, target, h)


def continued_step(
    history: History,
    x: Tensor,
    d: Tensor,
    times: tuple[float, float],
    masks: tuple[Tensor | None, Tensor | None],
    solver: Solver,
) -> tuple[History, Tensor]:
    """As `multirate_step`, but estimates of stale tokens are forecast instead of kept constant."""
    after, held = multirate_step(history, x, d, times, masks, solver)
    (t, t_next), fresh = times, masks[0]
    if fresh is None:
        return after, held
    elapsed, change = forecast_change(history, d, t, fresh)
    now = history.d + change
    state = redo_long_step(history, now, t)
    h = t_next - t
    middle = math.exp(-t) - math.exp(-(t + h / 2)) if math.isfinite(h) else 0.0
    ahead = now.addcmul_(change, (middle / elapsed.clamp_min(1e-6)).clamp_max_(STEEPEST))
    known = history.t.isfinite()
    return after, torch.where(fresh | ~known, held, advance(state, ahead, h))


def forecast_change(history: History, d: Tensor, t: float, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """The change that is forecast for the estimates from each pixel's last evaluation to time t.

    Args:
        history: each pixel's last evaluations before time t.
        d: (b, c, H, W) denoised estimate at time t; used only at fresh pixels.
        t: the present time.
        fresh: (b, 1, H, W) bool, pixels that are evaluated at time t.

    Returns:
        Two tensors: the decrease of sigma since each pixel's last evaluation, (b, 1, H, W); and the forecast
        change, (b, c, H, W).
    """
    last = history.t.neg().exp_()
    elapsed = (last - math.exp(-t)).clamp_min_(0.0)
    span = history.t_before.neg().exp_().sub_(last)  # inf after a first evaluation: the change is 0
    change = (history.d - history.d_before).mul_((elapsed / span).clamp_max_(FARTHEST))
    forecast, axes = change.masked_fill(~fresh, 0.0), tuple(range(1, d.ndim))
    agreement = (forecast * (d - history.d)).sum(axes, keepdim=True)
    gain = agreement / forecast.square().sum(axes, keepdim=True).clamp_min(1e-9)
    return elapsed, change.mul_(gain.clamp_(0.0, 1.0))
