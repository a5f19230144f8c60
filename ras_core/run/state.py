"""The state of one run, created when sampling starts and dropped when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import RASConfig
from ..kv.plain import Slots
from ..kv.store import Branch, KVStore
from ..method.grid import TokenGrid
from ..method.schedule import StepKind, StepPlan, plan_steps
from ..method.selector import Selector
from .evaluation import ANSWERED, MISLED, ODD_RESULT, EvaluationState, estimate_in
from .noise_levels import LEFT_ORDER, NoiseLevels
from .recorder import Recorder
from .steps import Steps
from .timing import Timestamp

logger = logging.getLogger(__name__)

NO_MEMORY = "there is not enough memory for the K/V cache"


@dataclass
class RunState:
    """State that a run carries from one evaluation to the next.

    Attributes:
        config: the user's settings.
        sigmas: the run's schedule as plain numbers.
        grid: token grid of the latent.
        batch: images in the batch.
        new_selector: makes a selector that has observed nothing.
        selector: picks the active tokens of regional steps.
        recorder: collects the trace.
        plan: one entry per step.
        steps: finds the step of each evaluation.
        kv: K/V cache, per branch.
        any_regional: whether the plan has a regional step.
        cached_output: denoised estimate (b, c, H, W) per branch, merged from fresh and cached tokens.
        text_rows: number of text rows in the call that has most of them, for the cost estimate.
        frozen_rows: number of rows of reference images in the call that has most of them.
        kv_bytes: largest size of the K/V cache during the run, in bytes.
        evaluation: state of the current evaluation.
        active_idx: tokens that the last evaluation processed, (b, n_active); None if it processed all.
        evaluations: number of completed evaluations.
        is_dense: whether the rest of the run is dense because RAS cannot continue; the log says why.
        plan_line: one line that describes the plan of the chosen speed, for live views; empty without one.
        reads_levels: whether noise levels are read, not predicted, as another node may skip evaluations.
        known_sigma: noise level of the next evaluation, set by the multirate integrator; None with others.
    """

    config: RASConfig
    sigmas: list[float]
    grid: TokenGrid
    batch: int
    new_selector: Callable[[], Selector]
    recorder: Recorder
    selector: Selector = field(init=False)
    plan: tuple[StepPlan, ...] = ()
    steps: Steps = field(init=False)
    kv: KVStore = field(init=False)
    any_regional: bool = field(init=False)
    cached_output: dict[Branch, Tensor] = field(default_factory=dict)
    text_rows: int = 0
    frozen_rows: int = 0
    kv_bytes: int = 0
    evaluation: EvaluationState | None = None
    is_dense: bool = False
    active_idx: Tensor | None = None
    evaluations: int = 0
    plan_line: str = ""
    reads_levels: bool = False
    known_sigma: float | None = None
    _called: dict[Branch, int] = field(default_factory=dict)  # branch, the last evaluation that called it
    _selected: tuple[int, Tensor | None] | None = None  # step, its active tokens
    _levels: NoiseLevels = field(init=False)

    def __post_init__(self) -> None:
        self.follow(self.sigmas)
        self.plan = plan_steps(len(self.sigmas) - 1, self.config)
        self.kv = KVStore(self.grid.n)
        self.any_regional = any(step.kind is StepKind.REGIONAL for step in self.plan)

    def follow(self, sigmas: list[float], first: int = 0) -> None:
        """Expect evaluations at these noise levels, which are those of the steps from `first` on."""
        self.sigmas, self.selector = sigmas, self.new_selector()
        self.steps, self._levels = Steps(sigmas, first), NoiseLevels(sigmas)

    @property
    def spread_over(self) -> tuple[int, ...] | None:
        """Size of the token grid along each axis, if extrapolated rows (forecasts) of cached tokens are
        corrected by the forecast errors of active tokens (kv/spread.py); otherwise None.
        """
        return self.grid.shape if self.config.spread else None

    @property
    def is_regional(self) -> bool:
        """Whether the plan has regional steps and the run has not gone dense."""
        return self.any_regional and not self.is_dense

    def keep_cache_as(self, format_name: str, branch_nbytes: int = 0) -> None:
        """Start an empty K/V cache with this format (kv/formats.py) and this approximate size per branch, in
        bytes. This function must be called before the first call of the network.
        """
        self.kv = KVStore(self.grid.n, format_name, branch_nbytes)

    def sigma_of(self, level: Tensor) -> float:
        """The noise level of the evaluation that is about to start, as a float; `level` is the same noise
        level as a tensor, (1,). This function must be called exactly once for each evaluation.
        """
        if self.known_sigma is not None:
            sigma, self.known_sigma = self.known_sigma, None
            return sigma
        if self.reads_levels:
            return float(level)
        sigma = self._levels.read(level)
        if self._levels.was_wrong:
            self.warn(LEFT_ORDER)
        return sigma

    def begin_evaluation(self, sigma: float, now: Timestamp) -> None:
        """Start a guided evaluation: find its step and, if the step is regional, select its active tokens."""
        plan = self.plan[self.steps.next()(sigma)]
        active_idx, fill_cache = self._active_tokens(plan), self._is_cache_needed(plan)
        self.evaluation = EvaluationState(plan, active_idx, fill_cache, now)

    def record_plain_evaluation(self, sigma: Tensor, now: Timestamp) -> None:
        """Add an evaluation to the trace of a run without regional steps. The evaluation's noise level,
        `sigma` (1,), is read only after the run, so that the CPU need not wait for the device.
        """
        step = self.steps.next()
        self.recorder.begin(lambda level: self.plan[step(level)], sigma, now)
        self.evaluations += 1

    @torch.no_grad()  # some samplers are called outside inference mode
    def end_evaluation(self, x: Tensor, result: object, sigma: float) -> None:
        """End a guided evaluation: pass its input `x`, (b, c, H, W), its denoised estimate and its noise
        level to the selector, and complete its entry in the trace. `result` is the estimate, (b, c, H, W),
        or what a guider of another pack returns: some return several estimates, the usual one first.
        """
        evaluation = self.evaluation
        self.evaluation = None
        self._forget_others(evaluation.seen)
        self.evaluations += 1
        self.active_idx = evaluation.active_idx if evaluation.ran_regional else None
        denoised = estimate_in(result, self.batch, self.grid.size)
        if self.any_regional and denoised is not None:
            self.selector.observe(x, denoised, sigma, self.active_idx)
        elif self.is_regional:
            self.go_dense(ODD_RESULT)
        self.recorder.begin(evaluation.plan, sigma, evaluation.started)
        self.recorder.end(self.active_idx, self.selector.score)

    def skip_evaluation(self) -> None:
        """End an evaluation in which no network ran; neither the trace nor the selector counts it."""
        self.evaluation = None
        self.warn(ANSWERED)
        if self.recorder.any_regional:
            self.recorder.remark(MISLED)

    def end_fill(self, branches: tuple[Branch, ...], slots: Slots, text_rows: int) -> None:
        """Keep the K/V slots that a dense call has filled for `branches`."""
        self.kv.end_fill(branches, slots)
        self.text_rows = max(self.text_rows, text_rows)
        self.kv_bytes = max(self.kv_bytes, self.kv.nbytes())

    def merge(self, branches: tuple[Branch, ...], active_idx: Tensor, fresh: Tensor) -> Tensor:
        """Merge fresh output at active tokens with cached output at the other tokens; cache the result.

        Args:
            branches: branches of the call, each with b entries on the batch axis of `fresh`.
            active_idx: (bb, n_active).
            fresh: the network's output, (bb, c, H, W).

        Returns:
            (bb, c, H, W).
        """
        self.evaluation.ran_regional = True
        cached = torch.cat([self.cached_output[branch] for branch in branches])
        merged = torch.where(self.grid.active_pixels(active_idx), fresh, cached)
        self.keep_output(branches, merged)
        return merged

    def keep_output(self, branches: tuple[Branch, ...], output: Tensor) -> None:
        """Cache a call's output, (bb, c, H, W), for the regional steps that follow."""
        for branch, part in zip(branches, output.clone().chunk(len(branches)), strict=True):
            self.cached_output[branch] = part

    def _forget_others(self, seen: set[Branch]) -> None:
        """Drop the K/V and output of branches that are not called any more (prompt scheduling): those that
        two evaluations did not call, once another branch is called for the first time. Until then they are
        kept, because guidance may skip a prompt for some steps.
        """
        # Runs in which the negative prompt returned after 1 to 6 steps were as close to their dense runs as
        # runs with all prompts in every step (SD3 demo model).
        is_new, now = bool(seen - self._called.keys()), self.evaluations
        self._called |= dict.fromkeys(seen, now)
        gone = [branch for branch, last in self._called.items() if is_new and last < now - 1]
        self.kv.drop(tuple(gone))
        for branch in gone:
            del self._called[branch]
            self.cached_output.pop(branch, None)

    def go_dense(self, reason: str) -> None:
        """Run the rest of this run dense: free the caches, and log a warning with the reason."""
        self.is_dense = True
        self.release()
        if self.evaluation is not None:
            self.evaluation.fill_cache = False
        self.warn(f"running dense from here: {reason}")

    def release(self) -> None:
        """Free the K/V cache and the cached outputs."""
        self.kv = KVStore(self.grid.n)
        self.cached_output.clear()

    def warn(self, text: str) -> None:
        """Log a warning and add it to the trace, unless this run has already logged the same text."""
        if self.recorder.note(text):
            logger.warning("Multirate RAS: %s", text)

    def is_ready(self, branches: tuple[Branch, ...]) -> bool:
        """Whether each branch in `branches` has cached K/V and a cached output."""
        return all(branch in self.kv and branch in self.cached_output for branch in branches)

    def _active_tokens(self, plan: StepPlan) -> Tensor | None:
        """The active tokens of a step, or None if the step is dense. They are selected at the step's first
        evaluation, and all evaluations of the step use the same tokens.
        """
        if plan.kind is StepKind.DENSE or self.is_dense:
            return None
        if self._selected is None or self._selected[0] != plan.index:
            active = self.selector.select(plan.active_count(self.grid.n), self.steps.level_of(plan.index))
            self._selected = (plan.index, active)
        return self._selected[1]

    def _is_cache_needed(self, plan: StepPlan) -> bool:
        """Whether the K/V of an evaluation in the step `plan` must be kept, because regional calls of this
        step or of a step soon after it may read them.
        """
        if self.is_dense:
            return False
        ahead = 1 + self.kv.evaluations
        return any(step.kind is StepKind.REGIONAL for step in self.plan[plan.index : plan.index + ahead])
