"""Plans which steps of a run are dense and which are regional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ..config import RASConfig
from ..errors import RASError

# An evaluation's sigma may differ from the schedule's by rounding (samplers that work in log space): by at
# most this fraction, and by less than half a step, because long schedules have still smaller steps.
SIGMA_TOLERANCE = 1e-4


class StepKind(Enum):
    """How many tokens a step processes."""

    DENSE = "dense"
    REGIONAL = "regional"


@dataclass(frozen=True)
class StepPlan:
    """One step of a run.

    Attributes:
        index: position in the run, from 0.
        kind: dense or regional.
        ratio: share of the image tokens to process; 1 for a dense step.
        is_reset: a dense step inserted to clear the error of the cached tokens (paper, section 3.4).
    """

    index: int
    kind: StepKind
    ratio: float = 1.0
    is_reset: bool = False

    def active_count(self, n_tokens: int) -> int:
        """Number of tokens to process; the cached share is rounded down, as in the reference code."""
        if self.kind is StepKind.DENSE:
            return n_tokens
        cached = int((1.0 - self.ratio) * n_tokens + 1e-6)
        return min(max(n_tokens - cached, 1), n_tokens)


def plan_steps(n_steps: int, config: RASConfig) -> tuple[StepPlan, ...]:
    """Plan a run of `n_steps` steps (paper, section 3.4).

    Step 0 is always dense, and with the multirate method step 1 too: selection needs results of earlier
    steps. The window [start_step, end_step) is half-open throughout; in the reference code it is not.

    Raises:
        RASError: `config.shares` has not one share for each of the `n_steps` steps.
    """
    if config.shares:
        return _as_given(n_steps, config.shares)
    window = _regional_window(n_steps, config)
    resets = {step for step in _reset_steps(n_steps, config) if step in window}
    regional = [step for step in window if step not in resets]
    ratios = dict(zip(regional, _ratios(len(regional), config), strict=True))
    return tuple(_plan_one(step, ratios.get(step, 1.0), step in resets) for step in range(n_steps))


def _as_given(n_steps: int, shares: Sequence[float]) -> tuple[StepPlan, ...]:
    """Steps with these shares; a dense one after a regional one is a reset."""
    if len(shares) != n_steps:
        raise RASError(
            f"a plan of {len(shares)} steps for a run of {n_steps} steps.",
            "as many shares as steps.",
            "use RAS Patch Model or RAS KSampler, which fit a plan to the run.",
        )
    resets = (share == 1 and min(shares[: step + 1]) < 1 for step, share in enumerate(shares))
    return tuple(_plan_one(step, shares[step], is_reset) for step, is_reset in enumerate(resets))


def step_of_sigma(sigmas: Sequence[float], sigma: float) -> int:
    """The step whose interval contains `sigma`; on a boundary, the step that starts there.

    Args:
        sigmas: the run's decreasing schedule, one more value than there are steps.
        sigma: noise level of an evaluation, which may be between two values of the schedule, or just below
            its first value.
    """
    last = len(sigmas) - 2
    step = 0
    while step < last and _starts_at_or_above(sigmas[step], sigmas[step + 1], sigma):
        step += 1
    return step


def _starts_at_or_above(before: float, start: float, sigma: float) -> bool:
    """Whether the step from `start`, which follows the step from `before`, starts at `sigma` or above it."""
    return start + min(SIGMA_TOLERANCE * start, (before - start) / 2) >= sigma


def decreases(sigmas: Sequence[float]) -> bool:
    """Whether the schedule is strictly decreasing, which regional steps require."""
    return all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))


def _regional_window(n_steps: int, config: RASConfig) -> range:
    end = min(config.end_step, n_steps) if config.end_step else n_steps
    # The multirate score needs two estimates; the paper's metric needs one output.
    earliest = 2 if config.paper is None else 1
    return range(max(config.start_step, earliest), end)


def _reset_steps(n_steps: int, config: RASConfig) -> Sequence[int]:
    if config.error_reset_steps:
        return config.error_reset_steps
    if config.error_reset_every == 0:
        return ()
    return range(config.start_step + config.error_reset_every, n_steps, config.error_reset_every)


def _ratios(count: int, config: RASConfig) -> list[float]:
    """The ratio of each regional step, first to last."""
    end = config.paper.ratio_end if config.paper else 0.0
    if end == 0 or count < 2:
        return [config.sample_ratio] * count
    slope = (end - config.sample_ratio) / (count - 1)
    return [config.sample_ratio + slope * i for i in range(count)]


def _plan_one(step: int, ratio: float, is_reset: bool) -> StepPlan:
    if ratio < 1.0:
        return StepPlan(step, StepKind.REGIONAL, ratio)
    return StepPlan(step, StepKind.DENSE, is_reset=is_reset)
