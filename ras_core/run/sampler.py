"""The multirate integrator over a whole schedule; method/integrator.py has the equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..method.integrator import History, Solver, advance, continued_step, multirate_step
from .state import RunState

Denoise = Callable[[int, Tensor], Tensor]
"""A function of a step's index and of x at the start of this step, which returns the denoised estimate. x and
the estimate are (b, c, H, W)."""

Plain = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""An ordinary sampler: a function of another function, which maps x to the denoised estimate, and of the
first x. It calls that function once per step, in the order of the schedule, and returns the final x."""


class Departure(Exception):
    """Ends an ordinary sampler at the first regional evaluation, from where the integrator continues.

    Attributes:
        step: index of the evaluation's step.
        x, denoised: (b, c, H, W) input and merged estimate of the evaluation.
    """

    def __init__(self, step: int, x: Tensor, denoised: Tensor):
        super().__init__("the integrator continues from here")
        self.step, self.x, self.denoised = step, x, denoised


class Integration:
    """Integrates from the first noise level to the last, each token with its own step size.

    Without a run, every token is fresh at every step, so the result is that of the ordinary sampler `solver`.

    Args:
        denoise: evaluates the model.
        levels: decreasing, ending in 0 or above.
        run: state of the run, with the tokens that each evaluation computed; None for a model without RAS.
        solver: the integration method for fresh tokens.
    """

    def __init__(self, denoise: Denoise, levels: list[float], run: RunState | None, solver: Solver):
        self._denoise, self._levels, self._run, self._solver = denoise, levels, run, solver
        continues = run is not None and run.config.continue_outputs
        self._step = continued_step if continues else multirate_step
        self._history: History | None = None
        self._fresh_before: Tensor | None = None
        self._evaluations = 0

    def over(self, x: Tensor, steps: Iterable[int]) -> Tensor:
        """The final latent, from x (b, c, H, W) at the first of these steps, which may be a progress bar."""
        for i in steps:
            x = self._advanced(i, x, self._evaluated(i, x))
        return x

    def following(self, plain: Plain, x: Tensor, steps: Iterable[int]) -> Tensor:
        """As `over`, but the ordinary sampler makes the steps before the first regional evaluation. So a run
        without a regional step gives exactly the result of this sampler.
        """
        numbers = iter(steps)
        try:
            x = plain(partial(self._followed, numbers), x)
            next(numbers, None)  # completes a progress bar
            return x
        except Departure as departure:
            found = departure
        return self.over(self._advanced(found.step, found.x, found.denoised), numbers)

    def _followed(self, numbers: Iterator[int], x: Tensor) -> Tensor:
        """The estimate for one step of the ordinary sampler.

        Raises:
            Departure: only a part of the tokens were evaluated.
        """
        i = next(numbers)
        denoised = self._evaluated(i, x)
        if self._has_answered():
            if fresh_pixels(self._run) is not None:
                raise Departure(i, x, denoised)
            self._evaluations = self._run.evaluations
            known = self._history or History.empty(x)
            self._history = known.after(x, denoised, _time(self._levels[i]))
            self._fresh_before = None
        else:
            self._skip(x)
        return denoised

    def _evaluated(self, i: int, x: Tensor) -> Tensor:
        if self._run is not None:
            self._run.known_sigma = self._levels[i]
        return self._denoise(i, x)

    def _has_answered(self) -> bool:
        """Whether the model itself gave the last estimate, and no step cache (another node)."""
        return self._run is None or self._run.evaluations != self._evaluations

    def _skip(self, x: Tensor) -> None:
        """Note a skipped evaluation: its estimate is a guess, which must not enter the history."""
        self._fresh_before = torch.zeros_like(x[:, :1], dtype=torch.bool)

    def _advanced(self, i: int, x: Tensor, denoised: Tensor) -> Tensor:
        """x at the start of the step after step i, (b, c, H, W)."""
        t, t_next = _time(self._levels[i]), _time(self._levels[i + 1])
        history, fresh_before = self._history or History.empty(x), self._fresh_before
        if not self._has_answered():
            self._skip(x)
            return advance(x, denoised, t_next - t)
        self._evaluations = self._run.evaluations if self._run is not None else 0
        self._fresh_before = fresh = fresh_pixels(self._run)
        stale = None if fresh_before is None else ~fresh_before
        own = self._solver if math.isfinite(t_next) else "euler"  # at sigma 0 the result is the estimate
        self._history, x = self._step(history, x, denoised, (t, t_next), (fresh, stale), own)
        return x


def fresh_pixels(run: RunState | None) -> Tensor | None:
    """The latent pixels that the last evaluation computed, (b, 1, H, W) bool; None if it computed all."""
    return None if run is None else run.active_pixels


def _time(sigma: float) -> float:
    return -math.log(sigma) if sigma > 0 else math.inf
