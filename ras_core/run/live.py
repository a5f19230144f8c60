"""Reports on a run while it is sampling, for a live view in the user interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..method.grid import TokenGrid
from ..method.schedule import StepKind
from .state import RunState
from .trace import Trace


@dataclass(frozen=True)
class Estimate:
    """The denoised estimate of an evaluation.

    Attributes:
        index: index of the step that the evaluation belongs to, from 0.
        latent: (b, c, H, W) or (b, c, T, H, W), on the device.
    """

    index: int
    latent: Tensor


@dataclass(frozen=True)
class LiveStep:
    """An evaluation that is about to run.

    Attributes:
        index: index of the step that the evaluation belongs to, from 0.
        n_steps: number of steps of the run.
        kind: "dense", "regional" or "reset" (dense, to end the errors that cached tokens have accumulated).
        active_share: share of the image tokens that the evaluation processes.
        read_mask: returns the active tokens of the batch's first image, (h, w) or (t, h, w) bool; None if all
            tokens are active. `read_mask` waits for the device, so call it only to show the mask.
        plan: one line that describes the plan of the chosen speed; empty if the user chose no speed.
        read_estimate: returns the latest denoised estimate of the run; None before the first. It may be
            called until the run's end.
    """

    index: int
    n_steps: int
    kind: str
    active_share: float
    read_mask: Callable[[], np.ndarray | None]
    plan: str = ""
    read_estimate: Callable[[], Estimate | None] = lambda: None


class View(Protocol):
    """An observer of one run."""

    def step(self, step: LiveStep) -> None:
        """Called when an evaluation starts."""

    def end(self, trace: Trace | None) -> None:
        """Called when the run has ended; the trace is None if the run was interrupted or failed."""


ViewFactory = Callable[[TokenGrid, Any], View | None]
"""A function that is called once at the start of each run, with the run's grid and the model's latent format,
and returns an observer, or None if no user interface shows the run."""


def kind_name(kind: StepKind, is_reset: bool) -> str:
    """The name of a step's kind in reports: "dense", "regional" or "reset"."""
    return "reset" if is_reset and kind is StepKind.DENSE else kind.value


def live_step(run: RunState, read_estimate: Callable[[], Estimate | None] = lambda: None) -> LiveStep:
    """A report on the run's current evaluation, made without waiting for the device. `read_estimate` is as in
    LiveStep.
    """
    plan, active_idx = run.evaluation.plan, run.evaluation.active_idx
    kind = StepKind.DENSE if active_idx is None else StepKind.REGIONAL
    share = 1.0 if active_idx is None else active_idx.shape[1] / run.grid.n
    return LiveStep(
        plan.index,
        len(run.plan),
        kind_name(kind, plan.is_reset),
        share,
        lambda: _mask(run.grid, active_idx),
        run.plan_line,
        read_estimate,
    )


def _mask(grid: TokenGrid, active_idx: Tensor | None) -> np.ndarray | None:
    if active_idx is None:
        return None
    return grid.active_mask(active_idx[:1]).cpu().numpy().reshape(grid.shape)
