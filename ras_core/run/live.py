"""What a run reports while it is sampling, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from ..method.grid import TokenGrid
from ..method.schedule import StepKind
from .state import RunState
from .trace import Trace


@dataclass(frozen=True)
class LiveStep:
    """An evaluation that begins.

    Attributes:
        index: its step, from 0.
        n_steps: steps of the run.
        kind: "dense", "regional" or "reset", an error-reset step.
        active_share: share of the tokens that it processes.
        read_mask: (h, w) or (t, h, w) bool, the tokens of the batch's first image; None when all of them.
            Waits for the device, so ask only when the answer is shown.
    """

    index: int
    n_steps: int
    kind: str
    active_share: float
    read_mask: Callable[[], np.ndarray | None]


class View(Protocol):
    """Somebody who watches one run."""

    def step(self, step: LiveStep) -> None:
        """An evaluation begins."""

    def end(self, trace: Trace | None) -> None:
        """The run is over; there is no trace when it was interrupted or failed."""


ViewFactory = Callable[[TokenGrid], View | None]
"""Asked once at the start of each run; None when nobody watches."""


def kind_name(kind: StepKind, is_reset: bool) -> str:
    """The word for a step: "dense", "regional" or "reset"."""
    return "reset" if is_reset and kind is StepKind.DENSE else kind.value


def live_step(run: RunState) -> LiveStep:
    """The evaluation under way, without waiting for the device."""
    plan, active_idx = run.evaluation.plan, run.evaluation.active_idx
    kind = StepKind.DENSE if active_idx is None else StepKind.REGIONAL
    share = 1.0 if active_idx is None else active_idx.shape[1] / run.grid.n
    return LiveStep(
        plan.index, len(run.plan), kind_name(kind, plan.is_reset), share, lambda: _mask(run.grid, active_idx)
    )


def _mask(grid: TokenGrid, active_idx: Tensor | None) -> np.ndarray | None:
    if active_idx is None:
        return None
    return grid.active_mask(active_idx[:1]).cpu().numpy().reshape(grid.shape)
