"""The trace of a run: the data that are collected about its evaluations, read-only once the run has ended."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..graphs.eligibility import GraphReport
from ..method.grid import TokenGrid
from ..method.schedule import StepKind, StepPlan
from ..models.cost import CostProfile, expected_speedup
from .timing import Timestamp, seconds_between


@dataclass(frozen=True)
class Evaluation:
    """One guided evaluation of the model.

    Attributes:
        step: index of the step that the evaluation belongs to.
        sigma: noise level.
        kind: how the evaluation ran; it may be dense although it was planned as regional.
        is_reset: whether its step was planned as an error-reset step.
        active: (b, *shape) bool, the tokens that were processed; `shape` is the shape of the token grid.
        score: (b, *shape) float32, scores of the tokens after the evaluation, or None.
        seconds: time from the start of this evaluation to that of the next one, or to the end of the run.
    """

    step: int
    sigma: float
    kind: StepKind
    is_reset: bool
    active: np.ndarray
    score: np.ndarray | None
    seconds: float

    @property
    def active_share(self) -> float:
        return float(self.active.mean())


@dataclass(frozen=True)
class Trace:
    """A finished run.

    Attributes:
        grid: token grid of the latent.
        n_steps: steps of the run.
        evaluations: all evaluations, in order; samplers of higher order have several per step.
        expected_speedup: FLOPs of a dense run with as many evaluations, divided by the FLOPs of this run.
        measured_speedup: estimated time of such a dense run, divided by the time of this run; None if this
            run has no dense evaluation from which the time can be estimated.
        seconds: sampling time from the first evaluation on, without loading of the model.
        kv_bytes: size in bytes that the K/V cache had at most during the run.
        notes: warnings of the run, such as why a planned regional step ran dense.
        graphs: report on the run's CUDA graphs; None if CUDA graphs were off or not possible.
        plan: the plan of the run's speed in one line; empty if no speed is set.
    """

    grid: TokenGrid
    n_steps: int
    evaluations: tuple[Evaluation, ...]
    expected_speedup: float
    measured_speedup: float | None
    seconds: float
    kv_bytes: int
    notes: tuple[str, ...] = field(default=())
    graphs: GraphReport | None = None
    plan: str = ""

    @classmethod
    def empty(cls, reason: str) -> Trace:
        """The trace of a run without RAS; its only note is the reason."""
        return cls(TokenGrid((1, 1), (1, 1)), 0, (), 1.0, None, 0.0, 0, (reason,))

    @property
    def steps(self) -> tuple[Evaluation, ...]:
        """The last evaluation of each step."""
        return tuple({evaluation.step: evaluation for evaluation in self.evaluations}.values())

    @property
    def regional_steps(self) -> int:
        return sum(step.kind is StepKind.REGIONAL for step in self.steps)

    @property
    def token_share(self) -> float:
        """Share of the image tokens that an evaluation processed, as the mean over the run's evaluations."""
        return float(np.mean([evaluation.active_share for evaluation in self.evaluations] or [1.0]))

    def summary(self) -> str:
        """The line to log at the end of a run. Its speed-ups are over a run of as many steps, all dense."""
        measured = f"{self.measured_speedup:.2f}x" if self.measured_speedup else "not measurable"
        line = (
            f"{self.regional_steps} of {self.n_steps} steps regional, {self.token_share:.0%} of tokens "
            f"processed, speed-up expected {self.expected_speedup:.2f}x, measured {measured}"
        )
        if self.plan:  # of a run without regional steps, the plan's line says everything
            says_more = self.regional_steps or self.notes
            line = f"{line} over {self.n_steps} dense steps" if says_more else ""
        parts = [self.plan, line, self._graphs_line(), *self.notes]
        return f"Multirate RAS: {'; '.join(filter(None, parts))}"

    def _graphs_line(self) -> str | None:
        total = sum(evaluation.kind is StepKind.REGIONAL for evaluation in self.evaluations)
        if self.graphs is None or not total:
            return None
        line = f"{self.graphs.replayed} of {total} regional steps replayed as CUDA graphs"
        return f"{line} ({self.graphs.details})" if self.graphs.details else line

    def as_dict(self) -> dict:
        """The trace as JSON-compatible values, for a user interface."""
        return {
            "steps": self.n_steps,
            "evaluations": len(self.evaluations),
            "regional_steps": self.regional_steps,
            "token_share": self.token_share,
            "expected_speedup": self.expected_speedup,
            "measured_speedup": self.measured_speedup,
            "seconds": self.seconds,
            "kv_bytes": self.kv_bytes,
            "grid": list(self.grid.shape),
            "notes": list(self.notes),
            "plan": self.plan,
            "graphs": None if self.graphs is None else asdict(self.graphs),
            "timeline": [
                {"step": e.step, "sigma": e.sigma, "kind": e.kind.value, "reset": e.is_reset,
                 "active_share": e.active_share, "seconds": e.seconds}
                for e in self.evaluations
            ],
        }  # fmt: skip


@dataclass
class _Entry:
    """An evaluation of a run that is still sampling; tensors stay on the device until the run ends."""

    plan: StepPlan | Callable[[float], StepPlan]
    sigma: float | Tensor
    started: Timestamp
    active_idx: Tensor | None = None
    score: Tensor | None = None


class Recorder:
    """Collects a run's evaluations without waiting for the device."""

    def __init__(self, grid: TokenGrid, batch: int):
        self._grid = grid
        self._batch = batch
        self._entries: list[_Entry] = []
        self._notes: list[str] = []

    def begin(
        self, plan: StepPlan | Callable[[float], StepPlan], sigma: float | Tensor, now: Timestamp
    ) -> None:
        """Start an entry. If `sigma` is a tensor, `plan` is a function that finds its step after the run."""
        self._entries.append(_Entry(plan, sigma, now))

    def end(self, active_idx: Tensor | None, score: Tensor | None) -> None:
        """Complete the current evaluation's entry; `active_idx` is None if the evaluation was dense."""
        entry = self._entries[-1]
        entry.active_idx, entry.score = active_idx, score

    @property
    def any_regional(self) -> bool:
        return any(entry.active_idx is not None for entry in self._entries)

    @property
    def any_note(self) -> bool:
        return bool(self._notes)

    def note(self, text: str) -> bool:
        """Add a note and return True; return False if the trace already has this note."""
        if text in self._notes:
            return False
        self._notes.append(text)
        return True

    def finish(
        self,
        now: Timestamp,
        n_steps: int,
        profile: CostProfile,
        n_text: int,
        kv_bytes: int,
        graphs: GraphReport | None = None,
    ) -> Trace:
        evaluations = self._evaluations(now)
        counts = [round(e.active_share * self._grid.n) for e in evaluations]
        return Trace(
            grid=self._grid,
            n_steps=n_steps,
            evaluations=evaluations,
            expected_speedup=expected_speedup(profile, self._grid.n, n_text, counts),
            measured_speedup=measured_speedup(evaluations),
            seconds=sum(e.seconds for e in evaluations),
            kv_bytes=kv_bytes,
            notes=tuple(self._notes),
            graphs=graphs,
        )

    def _evaluations(self, now: Timestamp) -> tuple[Evaluation, ...]:
        entries = self._entries
        ends = [*(entry.started for entry in entries), now][1:]
        indices = [entry.active_idx for entry in entries]
        masks = _to_cpu([None if idx is None else self._grid.active_mask(idx) for idx in indices])
        scores = _to_cpu([None if entry.score is None else entry.score.float() for entry in entries])
        return tuple(map(self._freeze, entries, ends, masks, scores))

    def _freeze(
        self, entry: _Entry, end: Timestamp, active: np.ndarray | None, score: np.ndarray | None
    ) -> Evaluation:
        shape = (self._batch, *self._grid.shape)
        sigma = float(entry.sigma)
        plan = entry.plan(sigma) if callable(entry.plan) else entry.plan
        return Evaluation(
            plan.index,
            sigma,
            StepKind.DENSE if active is None else StepKind.REGIONAL,
            plan.is_reset,
            np.ones(shape, dtype=bool) if active is None else active.reshape(shape),
            None if score is None else score.reshape(shape),
            seconds_between(entry.started, end),
        )


def _to_cpu(tensors: Sequence[Tensor | None]) -> list[np.ndarray | None]:
    """Copy all tensors, which have the same shape, to the CPU in one transfer."""
    there = [t for t in tensors if t is not None]
    here = iter(torch.stack(there).cpu().numpy() if there else ())
    return [None if t is None else next(here) for t in tensors]


def measured_speedup(evaluations: Sequence[Evaluation]) -> float | None:
    """Estimated time of a dense run, divided by the time of this run; None if no estimate is possible.

    The dense run's evaluations are assumed to take the median time of the dense evaluations of this run. Both
    times leave out the first evaluation, which includes loading and autotuning of kernels.
    """
    later = evaluations[1:]
    dense = [e.seconds for e in later if e.kind is StepKind.DENSE]
    if not dense or not any(e.kind is StepKind.REGIONAL for e in later):
        return None
    total = sum(e.seconds for e in later)
    return statistics.median(dense) * len(later) / total if total > 0 else None
