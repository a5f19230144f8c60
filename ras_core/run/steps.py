"""Which step of a run each evaluation belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..method.schedule import SIGMA_TOLERANCE, step_of_sigma

LARGEST_SHIFT = 0.25
"""Noise levels up to this fraction outside a step's interval may be the shifted levels of this step. Further
away, the sampler follows a schedule of its own."""

PROVEN = 2
"""Number of steps that a sampler must finish with one evaluation each before it is assumed to continue so."""


class Steps:
    """Counts the steps of one pass: one call of the sampler.

    An evaluation belongs to the step whose interval contains its noise level. Samplers of some packs shift
    the levels that they pass to the model, possibly by several steps. So a level that is not one of the
    schedule's only decides within the limits set by the number of finished steps, which ComfyUI's samplers
    report to a callback.

    Args:
        sigmas: the noise levels of the pass, one more than it has steps.
        first: index, in the run, of the pass's first step.
    """

    def __init__(self, sigmas: Sequence[float], first: int = 0):
        self._sigmas, self._first = sigmas, first
        self._evaluations = 0
        self._finished = 0
        self._is_reporting = True  # whether the callback's numbers are 0, 1, 2, ...

    def level_of(self, step: int) -> float:
        """The noise level at the start of a step of this pass; `step` is counted over all passes."""
        return self._sigmas[step - self._first]

    def finish(self, number: int) -> None:
        """The sampler reports step `number`. Most samplers do so after the first evaluation of the step."""
        self._is_reporting = self._is_reporting and number == self._finished < len(self._sigmas) - 1
        self._finished += 1

    def next(self) -> Callable[[float], int]:
        """A function from the noise level of the evaluation that starts now to the index of its step, counted
        over all passes. It may be called later, when the level is known.
        """
        evaluations, finished = self._evaluations, self._finished
        self._evaluations += 1
        is_single = evaluations == finished >= PROVEN  # one evaluation in each step
        limits = (finished if is_single else max(finished - 1, 0), finished)
        if not self._is_reporting or not (finished or not evaluations):
            limits = None
        return lambda sigma: self._first + self._step(sigma, limits)

    def _step(self, sigma: float, limits: tuple[int, int] | None) -> int:
        by_level = step_of_sigma(self._sigmas, sigma)
        if limits is None or self._starts_at(by_level, sigma):
            return by_level
        lowest, highest = limits
        step = min(max(by_level, lowest), highest)
        return step if step < len(self._sigmas) - 1 and self._is_near(step, sigma) else by_level

    def _starts_at(self, step: int, sigma: float) -> bool:
        return abs(self._sigmas[step] - sigma) <= SIGMA_TOLERANCE * sigma

    def _is_near(self, step: int, sigma: float) -> bool:
        start, end = self._sigmas[step], self._sigmas[step + 1]
        return end * (1 - LARGEST_SHIFT) <= sigma <= start * (1 + LARGEST_SHIFT)
