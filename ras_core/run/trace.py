"""The trace of a run: the data collected about its evaluations, read-only once the run has ended."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from ..graphs.eligibility import GraphReport
from ..method.grid import TokenGrid
from ..method.schedule import StepKind
from ..method.shares import percent
from .timing import CLEARLY_LESS, is_disturbed, is_implausible, typical_seconds

INPAINTING_PLAN = " (inpainting)"
"""How the line of a plan ends if the run is one of inpainting, which has dense steps only."""


@dataclass(frozen=True)
class Evaluation:
    """One guided evaluation of the model.

    Attributes:
        step: index of the step that the evaluation belongs to.
        sigma: noise level.
        kind: how the evaluation ran; it may be dense although it was planned as regional.
        is_reset: whether its step was planned as a reset (`StepPlan.is_reset`).
        active: (b, *shape) bool, the tokens that were processed; `shape` is the shape of the token grid.
        score: (b, *shape) float32, scores of the tokens after the evaluation, or None.
        seconds: time from the start of this evaluation until the next one starts or the run ends.
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
        measured_speedup: estimated time of a dense run with as many evaluations, divided by the time of this
            run; None if this run has no dense evaluation from which the dense run's time can be estimated.
            After `against`, both speed-ups are relative to an actual dense run instead. The measured one is
            unreliable if `is_disturbed`.
        seconds: sampling time from the first evaluation on, without loading of the model.
        kv_bytes: largest size of the K/V cache during the run, in bytes.
        notes: warnings of the run, for example that regional steps ran dense, and why.
        remarks: what else a user should know about the run, although it did not make the run slower.
        graphs: report on the run's CUDA graphs; None if CUDA graphs were off or not possible.
        plan: one line that describes the plan of the chosen speed; empty if no speed is set.
        dense_steps: steps of the dense run that the speed-ups refer to; None if they refer to an estimated
            run with as many steps as this one.
        is_comparison_disturbed: whether times of the runs that this one is compared with are unreliable.
        asked_steps: steps of the run without a plan, which may replace them by fewer: those of the sampler
            node, or about those that RAS Scheduler was asked for (its levels only show how many it made); 0
            if not known.
        shortfall: why the plan cannot reach the chosen speed; empty if it can.
        levels: what the noise levels are if the plan's replaced the sampler's own: "the measured grid" or "an
            even grid"; empty if the sampler's own were kept.
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
    dense_steps: int | None = None
    is_comparison_disturbed: bool = False
    asked_steps: int = 0
    shortfall: str = ""
    remarks: tuple[str, ...] = ()
    levels: str = ""

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
        """Share of the image tokens that the run's evaluations processed on average."""
        return float(np.mean([evaluation.active_share for evaluation in self.evaluations] or [1.0]))

    @property
    def regional_evaluations(self) -> int:
        return sum(evaluation.kind is StepKind.REGIONAL for evaluation in self.evaluations)

    @property
    def is_disturbed(self) -> bool:
        """Whether other work on the computer has disturbed the times, so that their ratios are unreliable."""
        if self.is_comparison_disturbed or is_disturbed(self.evaluations):
            return True
        return is_implausible(self.evaluations, self.measured_speedup, self.expected_speedup)

    @property
    def is_accelerated(self) -> bool:
        return self.regional_steps > 0 or self.n_steps < self.asked_steps

    @property
    def is_inpainting(self) -> bool:
        """Whether the run follows a plan for inpainting: fewer steps, all of them dense."""
        return self.plan.endswith(INPAINTING_PLAN)

    @property
    def reason(self) -> str:
        """Why the run was not accelerated, or less than planned; empty if it ran as planned."""
        return next(filter(None, (*self.notes, self.shortfall)), "")

    @property
    def compared_steps(self) -> int:
        """Steps of the dense run over which `expected_gain` and `measured_gain` are given."""
        return self.dense_steps or max(self.asked_steps, self.n_steps)

    @property
    def expected_gain(self) -> float:
        """The expected speed-up over the run that the user would have made without RAS."""
        return self.expected_speedup * self._fewer_steps

    @property
    def measured_gain(self) -> float | None:
        """As `expected_gain`, measured; None if it cannot be."""
        return None if self.measured_speedup is None else self.measured_speedup * self._fewer_steps

    @property
    def gained_clearly_less(self) -> bool:
        """Whether the measured gain is far below the expected one."""
        return (self.measured_gain or math.inf) < CLEARLY_LESS * self.expected_gain

    @property
    def _fewer_steps(self) -> float:
        if self.dense_steps or not self.n_steps:  # the speed-ups are over that run already
            return 1.0
        return self.compared_steps / self.n_steps

    def against(self, dense: Trace) -> Trace:
        """This trace, with its speed-ups over a dense run of the same image, which may have more steps."""
        if not (self.evaluations and (seconds := typical_seconds(self.evaluations)) > 0):
            return self
        gain = self.expected_speedup * len(dense.evaluations) / len(self.evaluations)
        timed, measured = dense.evaluations, typical_seconds(dense.evaluations) / seconds
        is_unreliable = is_disturbed(timed) or is_implausible(timed, measured, gain)
        return replace(
            self, expected_speedup=gain, measured_speedup=measured, dense_steps=dense.n_steps,
            is_comparison_disturbed=is_unreliable,
        )  # fmt: skip

    def summary(self) -> str:
        """The line to log at the end of a run; its speed-ups are over the dense run with `compared_steps`."""
        # Without regional steps, the plan's number of steps says how much faster the run was.
        is_told = self.plan and not (self.regional_steps or self.notes or self.dense_steps)
        gains = "" if is_told or not self.is_accelerated else self.speedups()
        line = ", ".join(filter(None, ["" if self._ran_as_planned else self.counts(), gains]))
        told = (*self.notes, self.shortfall, *self.remarks)
        parts = [self.plan, line, self._graphs_line(), *told]
        return f"Multirate RAS: {'; '.join(filter(None, parts))}"

    @property
    def _ran_as_planned(self) -> bool:
        """Whether the plan's line already says what `counts` says: the dense steps, the share of tokens."""
        if len(self.evaluations) > self.n_steps:
            return False
        dense = self.n_steps - self.regional_steps
        share = f"{dense} dense, {percent(self.token_share)} of tokens"
        return (share if self.regional_steps else "all dense") in self.plan

    def counts(self) -> str:
        """The numbers of steps and tokens as text, the same wherever they are shown."""
        text = f"{self.regional_steps} of {self.n_steps} steps regional"
        if len(self.evaluations) > self.n_steps:
            text = f"{text} ({self.regional_evaluations} of {len(self.evaluations)} evaluations)"
        return f"{text}, {percent(self.token_share)} of tokens processed"

    def speedups(self) -> str:
        """The speed-ups as text, the same wherever they are shown."""
        measured = f"{self.measured_gain:.2f}x" if self.measured_gain else "not measurable"
        if self.measured_gain and self.is_disturbed:
            measured += " (unreliable: the computer was busy)"
        text = f"speed-up expected {self.expected_gain:.2f}x, measured {measured}"
        if not self.plan and not self.dense_steps:
            return text
        inpainting = " (inpainting: all steps dense)" if self.is_inpainting else ""
        return f"{text} over {self.compared_steps} dense steps{inpainting}"

    def _graphs_line(self) -> str | None:
        total = self.regional_evaluations
        if self.graphs is None or not total:
            return None
        unit = "steps" if total == self.regional_steps else "evaluations"
        line = f"{self.graphs.replayed} of {total} regional {unit} replayed as CUDA graphs"
        return f"{line} ({self.graphs.details})" if self.graphs.details else line

    def as_dict(self) -> dict:
        """The trace as JSON-compatible values, for a user interface."""
        return {
            "steps": self.n_steps,
            "evaluations": len(self.evaluations),
            "regional_steps": self.regional_steps,
            "token_share": self.token_share,
            "expected_speedup": self.expected_gain,
            "measured_speedup": self.measured_gain,
            "disturbed": self.is_disturbed,
            "reason": self.reason,
            "seconds": self.seconds,
            "kv_bytes": self.kv_bytes,
            "grid": list(self.grid.shape),
            "notes": list(self.notes),
            "remarks": list(self.remarks),
            "plan": self.plan,
            "graphs": None if self.graphs is None else asdict(self.graphs),
            "timeline": [
                {"step": e.step, "sigma": _in_json(e.sigma), "kind": e.kind.value, "reset": e.is_reset,
                 "active_share": e.active_share, "seconds": e.seconds}
                for e in self.evaluations
            ],
        }  # fmt: skip


def _in_json(number: float) -> float | None:
    """A number, or None if JSON cannot have it. (kl_optimal's noise levels are NaN in a run of one step.)"""
    return number if math.isfinite(number) else None
