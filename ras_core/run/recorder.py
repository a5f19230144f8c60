"""Collects data about each evaluation while a run samples, and makes the run's trace from these data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..graphs.eligibility import GraphReport
from ..method.grid import TokenGrid
from ..method.schedule import StepKind, StepPlan
from ..models.cost import CostProfile, expected_speedup
from .timing import Timestamp, measured_speedup, seconds_between
from .trace import Evaluation, Trace

UNCACHED_ONCE = "a conditioning without cached data ran dense once"
UNCACHED_OFTEN = "in {} evaluations a conditioning without cached data ran dense"


@dataclass
class _Entry:
    """Data about one evaluation of a run that is still sampling. The tensors stay on the device until the run
    ends, so that the CPU need not wait for them.
    """

    plan: StepPlan | Callable[[float], StepPlan]
    sigma: float | Tensor
    started: Timestamp
    active_idx: Tensor | None = None
    score: Tensor | None = None


class Recorder:
    """Collects data about a run's evaluations without waiting for the device. `finish` makes the trace."""

    def __init__(self, grid: TokenGrid, batch: int):
        self._grid = grid
        self._batch = batch
        self._entries: list[_Entry] = []
        self._notes: list[str] = []
        self._remarks: list[str] = []
        self._uncached: set[int] = set()  # indices of the evaluations in which `count_uncached` was called

    def begin(
        self, plan: StepPlan | Callable[[float], StepPlan], sigma: float | Tensor, now: Timestamp
    ) -> None:
        """Start the entry of an evaluation that began at `now`. `plan` is the plan of the evaluation's step,
        or a function that returns this plan for the noise level as a float.
        """
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

    def count_uncached(self) -> None:
        """Note that a conditioning without cached data runs dense in the current evaluation."""
        self._uncached.add(len(self._entries))

    def note(self, text: str) -> bool:
        """Add a note and return True; return False if the trace already has this note."""
        if text in self._notes:
            return False
        self._notes.append(text)
        return True

    def remark(self, text: str) -> bool:
        """Add a fact that does not make the run slower, and return True; return False if the trace already
        has it.
        """
        if text in self._remarks:
            return False
        self._remarks.append(text)
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
            notes=tuple(map(self._counted, self._notes)),
            remarks=tuple(self._remarks),
            graphs=graphs,
        )

    def _counted(self, note: str) -> str:
        is_often = note == UNCACHED_ONCE and len(self._uncached) > 1
        return UNCACHED_OFTEN.format(len(self._uncached)) if is_often else note

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
    """Copy these tensors, which all have the same shape, to the CPU in one transfer; None stays None."""
    there = [t for t in tensors if t is not None]
    here = iter(torch.stack(there).cpu().numpy() if there else ())
    return [None if t is None else next(here) for t in tensors]
