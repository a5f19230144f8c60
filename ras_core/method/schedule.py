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
    """Whether a step processes all tokens (DENSE) or only the active ones (REGIONAL)."""

    DENSE = "dense"
    REGIONAL = "regional"


@dataclass(frozen=True)
class StepPlan:
    """One step of a run.

    Attributes:
        index: number of the step in the run, from 0.
        kind: dense or regional.
        ratio: share of the image tokens to process; 1 for a dense step.
        is_reset: whether this is a reset: a dense step inserted among regional steps to clear the error that
            cached tokens have accumulated (paper, section 3.4).
    """

    index: int
    kind: StepKind
    ratio: float = 1.0
    is_reset: bool = False

    def active_count(self, n_tokens: int) -> int:
        """Number of tokens to process. The number of cached tokens is rounded down, as in the authors'
        reference code.
        """
        if self.kind is StepKind.DENSE:
            return n_tokens
        cached = int((1.0 - self.ratio) * n_tokens + 1e-6)
        return min(max(n_tokens - cached, 1), n_tokens)


def plan_steps(n_steps: int, config: RASConfig) -> tuple[StepPlan, ...]:
    """Plan a run of `n_steps` steps (paper, section 3.4).

    Step 0 is always dense, because selection needs the result of an earlier step. With the multirate method
    (`config.paper` is None), step 1 is dense too, because its selection needs the results of two steps.
    Regional steps are in the window [start_step, end_step), so `end_step` itself is never regional. The
    paper authors' reference code treats `end_step` inconsistently.

    Raises:
        RASError: the number of `config.shares` is not `n_steps`.
    """
    if config.shares:
        return _as_given(n_steps, config.shares)
    window = _regional_window(n_steps, config)
    resets = {step for step in _reset_steps(n_steps, config) if step in window}
    regional = [step for step in window if step not in resets]
    ratios = dict(zip(regional, _ratios(len(regional), config), strict=True))
    return tuple(_plan_one(step, ratios.get(step, 1.0), step in resets) for step in range(n_steps))


def _as_given(n_steps: int, shares: Sequence[float]) -> tuple[StepPlan, ...]:
    """Plan steps with the token shares of `config.shares`, one per step. Every dense step after the first
    regional step is a reset.
    """
    if len(shares) != n_steps:
        raise RASError(
            f"a plan of {len(shares)} steps for a run of {n_steps} steps.",
            "one token share for each step of the run.",
            "use RAS Patch Model or RAS KSampler, which fit a plan to the run.",
        )
    resets = (share == 1 and min(shares[: step + 1]) < 1 for step, share in enumerate(shares))
    return tuple(_plan_one(step, shares[step], is_reset) for step, is_reset in enumerate(resets))


def step_of_sigma(sigmas: Sequence[float], sigma: float) -> int:
    """The step whose interval contains `sigma`; on a boundary, the step that starts there.

    Args:
        sigmas: the noise levels of the run in decreasing order, one more than there are steps.
        sigma: noise level of an evaluation. Samplers of higher order also evaluate between two levels of the
            schedule. Some samplers, such as dpmpp_2m_sde, slightly lower the first level of flow models.
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


def why_all_dense(plan: Sequence[StepPlan], config: RASConfig) -> str:
    """Why this plan of a run has no regional step although the settings ask for such steps."""
    window = _regional_window(len(plan), config)
    steps = f"the run has {len(plan)} steps, and the first {window.start} are dense"
    if resets := sum(step.is_reset for step in plan):
        return f"{steps}, as are {resets} error resets"
    if 0 < config.end_step <= window.start:
        return f"{steps}, but regional steps end before step {config.end_step}"
    return steps


def _regional_window(n_steps: int, config: RASConfig) -> range:
    end = min(config.end_step, n_steps) if config.end_step else n_steps
    # The multirate score needs the estimates of two steps; the paper's metric needs the output of one step.
    earliest = 2 if config.paper is None else 1
    return range(max(config.start_step, earliest), end)


def _reset_steps(n_steps: int, config: RASConfig) -> Sequence[int]:
    if config.error_reset_steps:
        return config.error_reset_steps
    if config.error_reset_every == 0:
        return ()
    return range(config.start_step + config.error_reset_every, n_steps, config.error_reset_every)


def _ratios(count: int, config: RASConfig) -> list[float]:
    """The share of the image tokens that each regional step processes, from the first regional step to the
    last.
    """
    end = config.paper.ratio_end if config.paper else 0.0
    if end == 0 or count < 2:
        return [config.sample_ratio] * count
    slope = (end - config.sample_ratio) / (count - 1)
    return [config.sample_ratio + slope * i for i in range(count)]


def _plan_one(step: int, ratio: float, is_reset: bool) -> StepPlan:
    if ratio < 1.0:
        return StepPlan(step, StepKind.REGIONAL, ratio)
    return StepPlan(step, StepKind.DENSE, is_reset=is_reset)
