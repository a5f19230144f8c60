"""Finds the step of a run to which each evaluation belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..method.schedule import SIGMA_TOLERANCE, step_of_sigma

LARGEST_DROP, LARGEST_RISE = 0.25, 0.42
"""Some samplers shift the noise levels that they pass to the model. A noise level that is up to
`LARGEST_RISE` above a step's first level, or up to `LARGEST_DROP` below its last, as fractions of that level,
may be a shifted level of that step. If a noise level is further away, the sampler is assumed to follow a
schedule of its own. The option s_churn of ComfyUI's euler and heun raises levels by a factor of up to the
square root of 2."""

PROVEN = 2
"""After this many finished steps with one evaluation each, a sampler is assumed to make one evaluation in
every later step too."""


class Steps:
    """Finds the step of each evaluation in one pass. A pass is one call of the sampler.

    An evaluation belongs to the step whose interval contains the evaluation's noise level. Samplers of some
    packs shift the noise levels that they pass to the model, possibly by several steps. So if a noise level
    is not one of the schedule's levels, the number of finished steps limits which steps it may belong to.
    ComfyUI's samplers report each finished step to a callback.

    Args:
        sigmas: the noise levels of the pass, one more than the pass has steps.
        first: index of the pass's first step, if the steps of all passes of the run are counted.
    """

    def __init__(self, sigmas: Sequence[float], first: int = 0):
        self._sigmas, self._first = sigmas, first
        self._evaluations = 0
        self._finished = 0
        self._is_reporting = True  # whether the callback's numbers are 0, 1, 2, ...

    def level_of(self, step: int) -> float:
        """The noise level at the start of a step of this pass; `step` is its index in the whole run."""
        return self._sigmas[step - self._first]

    def finish(self, number: int) -> None:
        """Count a finished step, which the sampler has reported under this number. Most samplers report a
        step after its first evaluation.
        """
        self._is_reporting = self._is_reporting and number == self._finished < len(self._sigmas) - 1
        self._finished += 1

    def next(self) -> Callable[[float], int]:
        """Count the evaluation that starts now. Returns a function that takes this evaluation's noise level
        and returns the index of its step, counted over all passes of the run. The function may be called
        later, when the noise level is known.
        """
        evaluations, finished = self._evaluations, self._finished
        self._evaluations += 1
        is_single = evaluations == finished >= PROVEN  # one evaluation in each step
        limits = (finished if is_single else max(finished - 1, 0), finished)
        if not self._is_reporting or not (finished or not evaluations):
            limits = None
        elif evaluations == finished == 1:  # later evaluations of step 0 have lower levels than its first
            return lambda sigma: self._first + self._step(sigma, (int(self._is_above(sigma)), 1))
        return lambda sigma: self._first + self._step(sigma, limits)

    def _step(self, sigma: float, limits: tuple[int, int] | None) -> int:
        by_level = step_of_sigma(self._sigmas, sigma)
        if limits is None or self._starts_at(by_level, sigma):
            return by_level
        lowest, highest = limits
        step = min(max(by_level, lowest), highest)
        return step if step < len(self._sigmas) - 1 and self._is_near(step, sigma) else by_level

    def _is_above(self, sigma: float) -> bool:
        """Whether a noise level is above the whole schedule."""
        return sigma > self._sigmas[0] * (1 + SIGMA_TOLERANCE)

    def _starts_at(self, step: int, sigma: float) -> bool:
        return abs(self._sigmas[step] - sigma) <= SIGMA_TOLERANCE * sigma

    def _is_near(self, step: int, sigma: float) -> bool:
        start, end = self._sigmas[step], self._sigmas[step + 1]
        return end * (1 - LARGEST_DROP) <= sigma <= start * (1 + LARGEST_RISE)
