"""The multirate integrator over a whole schedule; method/integrator.py has the equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.history import History
from ..method.integrator import Solver, advance, continued_step, multirate_step
from .state import RunState

Denoise = Callable[[int, Tensor], Tensor]
"""A function of a step's index and of x at the start of this step, which returns the denoised estimate. x and
the estimate are (b, c, H, W)."""


@dataclass
class Start:
    """Where the integrator begins.

    Attributes:
        x: the noisy latent, (b, c, H, W).
        history: the evaluations before.
        fresh_before: pixels that the last of them computed, (b, 1, H, W) bool; None if it computed all.
        evaluations: number of the run's evaluations before.
    """

    x: Tensor
    history: History
    fresh_before: Tensor | None = None
    evaluations: int = 0

    @classmethod
    def at(cls, x: Tensor, run: RunState | None) -> Start:
        """A start at the first noise level; `run` may have sampled with other noise levels before."""
        return cls(x, History.empty(x), evaluations=0 if run is None else run.evaluations)


def integrate(
    denoise: Denoise,
    start: Start,
    levels: list[float],
    run: RunState | None,
    solver: Solver,
    steps: Iterable[int],
) -> Tensor:
    """Integrate from `start` to the last noise level. Each token has its own step size: the time
    since its own last evaluation (method/integrator.py).

    If `run` is None, every token is fresh (evaluated) at every step, so the result is that of the ordinary
    sampler `solver`.

    Args:
        denoise: evaluates the model.
        start: the state from which to continue: the first noise level, or a later one.
        levels: noise levels, decreasing to 0 or to a positive level.
        run: state of the run, from which the tokens that each evaluation computed are read; None if the model
            is not patched with RAS.
        solver: the integration method for fresh tokens.
        steps: step numbers up to len(levels) - 2, for example as a range wrapped in a progress bar.
    """
    x, history, fresh_before, evaluations = start.x, start.history, start.fresh_before, start.evaluations
    step = continued_step if run is not None and run.config.continue_outputs else multirate_step
    for i in steps:
        if run is not None:
            run.known_sigma = levels[i]
        denoised = denoise(i, x)
        t, t_next = time_of(levels[i]), time_of(levels[i + 1])
        if run is not None and run.evaluations == evaluations:
            # A step cache (another node) skipped this evaluation, so `denoised` is a guess, which must not
            # enter the integrator's history.
            run.skip_evaluation()
            x, fresh_before = advance(x, denoised, t_next - t), torch.zeros_like(x[:, :1], dtype=torch.bool)
            continue
        evaluations = run.evaluations if run is not None else 0
        fresh = fresh_pixels(run)
        stale = None if fresh_before is None else ~fresh_before
        history, x = step(history, x, denoised, (t, t_next), (fresh, stale), solver)
        fresh_before = fresh
    return x


def fresh_pixels(run: RunState | None) -> Tensor | None:
    """The latent pixels that the last evaluation computed, (b, 1, H, W) bool; None if it computed all."""
    return None if run is None or run.active_idx is None else run.grid.active_pixels(run.active_idx)


def time_of(sigma: float) -> float:
    """The integrator's time at a noise level."""
    return -math.log(sigma) if sigma > 0 else math.inf
