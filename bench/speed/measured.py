"""Runs of variants beside each other, and what they gave; knows nothing of what is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..common.pack_log import logged
from ..common.timing import Clock, Peak, Stages
from .cases import Variant, affordable_repeats

SEED = 7

Run = Callable[[int], Any]
"""Samples once from a seed; returns the run's trace, or None where there is no such thing."""


@dataclass
class Measured:
    """Measurements of one variant's runs.

    Attributes:
        variant, run, clock: what is sampled, and the clock that times it.
        forget: drops what an earlier variant left behind.
        seconds: sampling time of each timed run, from the first evaluation to the last one's end.
        node_seconds: wall-clock time of the whole call of the sampler node, synchronized at its end.
        stages: seconds of that call by stage, sampling included, from a separate run.
        enqueue: CPU seconds of each evaluation of that run.
        steps: seconds of each evaluation, per timed run.
        warm_up: sampling seconds of the first run.
        memory: of that first run.
        trace: of the last run, if RAS was on.
        counts: active tokens of each step, where the run tells them in place of a trace.
        recordings: graphs that the model keeps after the first run, which starts with none.
        graphs: CUDA graphs captured and replayed in the last run.
        log: what the pack logged in the first run, except for its summary.
    """

    variant: Variant
    run: Run
    clock: Clock
    forget: Callable[[], None] = lambda: None
    count_recordings: Callable[[], int] = lambda: 0
    count_graphs: Callable[[], dict[str, int]] = dict
    end_node: Callable[[], None] = lambda: None
    seconds: list[float] = field(default_factory=list)
    node_seconds: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    warm_up: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    trace: Any = None
    counts: list[int] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    enqueue: list[float] = field(default_factory=list)
    recordings: int = 0
    graphs: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    error: str = ""

    def once(self, seed: int) -> tuple[list[float], float]:
        """Seconds of each evaluation, and of the call."""
        _wait()
        self.count_graphs()
        started = time.perf_counter()
        self.trace = self.run(seed)
        _wait()
        seconds = time.perf_counter() - started
        self.graphs = self.count_graphs()
        self.end_node()
        return self.clock.laps(), seconds

    def warm(self, device: torch.device) -> None:
        """The first run, in which libraries choose kernels, and memory use is measured."""
        self.forget()  # memory is this variant's own
        peak = Peak(device)
        with logged() as lines:
            laps, _ = self.once(SEED)
        self.warm_up, self.memory, self.log = sum(laps), peak.read(), lines
        self.recordings = self.count_recordings()

    def stage(self, seed: int) -> None:
        """Time a run by stages; it also captures again what other variants' first runs dropped."""
        stages = self.clock.stages = Stages(self.clock.device)
        try:
            stages.enter("before sampling")
            self.trace = self.run(seed)
            stages.enter("end of node")
            self.end_node()
            stages.enter("")
        finally:
            self.clock.stages = None
        self.stages, self.enqueue = stages.seconds, stages.enqueue

    def figures_only(self) -> Measured:
        """Without the run, which holds a network."""
        return replace(self, run=lambda seed: None, forget=lambda: None, count_recordings=lambda: 0)

    def time(self, seed: int) -> None:
        laps, wall = self.once(seed)
        self.seconds.append(sum(laps))
        self.node_seconds.append(wall)
        self.steps.append(laps)


def take_turns(
    found: Sequence[Measured], device: torch.device, repeats: int, left: Callable[[], float]
) -> None:
    """Run each variant once, once by stages, then in rounds, so that clock drift affects all of them alike.

    Args:
        found: the variants, dense first.
        device: where they run.
        repeats: timed rounds wanted.
        left: seconds that may still be spent.
    """
    started = time.perf_counter()
    for each in found:
        if left() <= 0:
            each.error = "no time was left"
            continue
        _guarded(each, lambda each=each: each.warm(device))
    per_round = time.perf_counter() - started
    for each in found:
        if repeats and not each.error:
            _guarded(each, lambda each=each: each.stage(SEED))
    for number in range(affordable_repeats(per_round, left(), repeats)):
        for each in found:
            if not each.error:
                _guarded(each, lambda each=each, number=number: each.time(SEED + number))


def _guarded(each: Measured, work: Callable[[], None]) -> None:
    """A variant that fails is left out and told of; the others go on."""
    try:
        work()
    except Exception as error:
        each.error = f"{type(error).__name__}: {error}"[:500]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
