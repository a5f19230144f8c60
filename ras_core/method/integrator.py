"""Multirate integration: each token takes its own steps through the same ODE.

A cached token keeps its last denoised estimate D over several steps, so it takes one long first-order step.
In the exponential form of the flow's ODE, with t = -log sigma,

    dx/dt = D(x, t) - x
    x(t + h) = e^-h x(t) + (1 - e^-h) D      while D is constant (Euler in sigma; paper, eq. 3)

two corrections need no extra evaluations, only each token's own history:

    fresh token    second order along its last slope: D is extrapolated to the middle of the step, as in
                   DPM-Solver++(2M), or the velocity (x - D) / sigma is, as in Adams-Bashforth (`ab2`), which
                   is nearer to the converged image where steps are long;
    stale token    when it is evaluated again after a time H, its long step is repeated with D linear in t
                   between the two evaluations (trapezoid in exponential form).

Both hold for uneven steps. A token that was evaluated at the step before must not get the second correction,
because its second-order step already contains it.

`continued_step` also forecasts the estimates of stale tokens, from their last two evaluations in sigma:

    D' = D + f                f = g (D - D_before) (sigma_last - sigma) / (sigma_before - sigma_last)

The gain g, 0 to 1, is fitted per image to the fresh tokens of the same step: it is the factor on their own
forecasts that best fits their new estimates. At each step the long step of a stale token is repeated up to
the present, with D linear in t from its last evaluation to D'. The next step then takes the forecast for its
middle. The forecasts themselves are not kept: when the token is evaluated again, its long step is repeated
with its true estimates, as above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Solver = Literal["dpmpp_2m", "euler", "ab2"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
"""How fresh tokens step: euler is first order; ab2 is the Adams-Bashforth method of second order in sigma."""

FARTHEST = 8.0
"""Upper bound of a token's forecast, in multiples of its last change."""

STEEPEST = 4.0
"""Upper bound of the change from a step's start to its middle, in multiples of the change forecast so far."""


@dataclass
class History:
    """Last evaluations of every latent pixel.

    Attributes:
        d, d_before: (b, c, H, W) denoised estimate of the last evaluation and of the one before it.
        x: (b, c, H, W) state at the last evaluation.
        t, t_before: (b, 1, H, W) time of those evaluations; -inf where there was none.
    """

    d: Tensor
    d_before: Tensor
    x: Tensor
    t: Tensor
    t_before: Tensor

    @classmethod
    def empty(cls, x: Tensor) -> History:
        """The history before any evaluation of state x."""
        never = torch.full_like(x[:, :1], -torch.inf)
        return cls(x, x, x, never, never)

    def after(self, x: Tensor, d: Tensor, t: float, fresh: Tensor | None = None) -> History:
        """The history after evaluating the pixels of `fresh`, (b, 1, H, W) bool, or all of them at time t."""
        if fresh is None:
            return History(d=d, d_before=self.d, x=x, t=torch.full_like(self.t, t), t_before=self.t)
        return History(
            d=torch.where(fresh, d, self.d),
            d_before=torch.where(fresh, self.d, self.d_before),
            x=torch.where(fresh, x, self.x),
            t=self.t.masked_fill(fresh, t),
            t_before=torch.where(fresh, self.t, self.t_before),
        )


def advance(x: Tensor, d: Tensor, h: Tensor | float) -> Tensor:
    """Exact solution of dx/dt = D - x over h for constant D."""
    # A float is computed on the CPU: copying it to a GPU as a tensor would synchronize.
    if isinstance(h, float):
        decay = math.exp(-h)
        return (x * decay).add_(d * (1 - decay))
    decay = h.neg().exp_()
    return (decay * x).add_((1 - decay) * d)


def second_order_estimate(history: History, h: float) -> Tensor:
    """D in the middle of the next step, of length h, extrapolated from the last two evaluations."""
    span = history.t - history.t_before  # inf if there is no slope yet: D is kept
    return ((history.d - history.d_before) / span).mul_(h / 2).add_(history.d)


def adams_step(history: History, x: Tensor, d: Tensor, t: float, t_next: float) -> Tensor:
    """The state at t_next by Adams-Bashforth of second order, for steps of different lengths in sigma.

    x' = x + H (v + (v - v_before) H / (2 H_before)), with v = (x - D) / sigma

    Args:
        history: evaluations before that of `d`.
        x, d: (b, c, H, W) state and denoised estimate at time t.
        t, t_next: times.
    """
    sigma, step = math.exp(-t), math.exp(-t_next) - math.exp(-t)
    velocity = (x - d).div_(sigma)
    before = (history.x - history.d).mul_(history.t.exp())  # 0 if there was no evaluation
    span = history.t.neg().exp_().sub_(sigma)  # inf then, so that the velocity is kept
    slope = (velocity - before).div_(span).mul_(-step / 2)
    return x.add(velocity.add_(slope), alpha=step)


def redo_long_step(history: History, d: Tensor, t: float) -> Tensor:
    """The state at time t if D changed linearly from its last evaluation to `d`: (b, c, H, W)."""
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
    """One step of all tokens.

    Args:
        history: evaluations before this step's.
        x: (b, c, H, W) state at the start of this step.
        d: (b, c, H, W) denoised estimate of that state; the last one available for cached tokens.
        times: start and end of this step.
        masks: (b, 1, H, W) bool each: pixels evaluated at this step, None for all; and pixels not
            evaluated at the preceding step, None for none.
        solver: how fresh tokens step.

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
    if solver == "dpmpp_2m":
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
    """As `multirate_step`, but the estimates of stale tokens are forecast instead of held."""
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
    """How far the estimates have probably changed since they were evaluated.

    Args:
        history: last evaluations before those at time t.
        d: (b, c, H, W) estimate at time t, of fresh pixels.
        t: the time.
        fresh: (b, 1, H, W) bool.

    Returns:
        (b, 1, H, W) how far sigma has fallen since each pixel's last evaluation, and the (b, c, H, W) change.
    """
    last = history.t.neg().exp_()
    elapsed = (last - math.exp(-t)).clamp_min_(0.0)
    span = history.t_before.neg().exp_().sub_(last)  # inf if there was no evaluation before: no change
    change = (history.d - history.d_before).mul_((elapsed / span).clamp_max_(FARTHEST))
    forecast, axes = change.masked_fill(~fresh, 0.0), tuple(range(1, d.ndim))
    agreement = (forecast * (d - history.d)).sum(axes, keepdim=True)
    gain = agreement / forecast.square().sum(axes, keepdim=True).clamp_min(1e-9)
    return elapsed, change.mul_(gain.clamp_(0.0, 1.0))
