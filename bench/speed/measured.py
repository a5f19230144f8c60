"""Run the variants of a case in turn, and measure their time and memory.

A function given for each variant samples it once, so variants of other programs than ComfyUI can be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..common.pack_log import logged
from ..common.timing import Clock, Peak, Stages
from .cases import Variant

SEED = 7

Run = Callable[[int], Any]
"""Samples once with a seed; returns the run's trace, or None without RAS."""


@dataclass
class Measured:
    """Measurements of one variant's runs.

    Attributes:
        variant, run, clock: the variant, the function that samples it, and the clock that times it.
        forget: function that frees what earlier variants left in memory.
        seconds: sampling time of each timed run, from the start of its first evaluation to the end of its
            last.
        node_seconds: for each timed run, the wall-clock time of the sampler node's call, until the device has
            finished.
        stages: seconds that a sampler node's call spends in each stage, sampling included. A separate run,
            which is not a timed run, measures them.
        enqueue: CPU seconds to enqueue each evaluation, in the same run as `stages`.
        steps: for each timed run, the seconds of each evaluation.
        warm_up: sampling seconds of the first run. This run is not in `seconds`.
        memory: memory figures of the first run.
        trace: trace of the last run, if RAS was on.
        counts: number of active tokens in each step, for runs without a trace.
        kept_graphs: number of CUDA graphs that the model has after the variant's first run. `forget` frees
            all graphs before that run.
        graphs: number of CUDA graphs captured and number of replays in the last run.
        log: what the pack logged in the first run.
    """

    variant: Variant
    run: Run
    clock: Clock
    forget: Callable[[], None] = lambda: None
    count_kept_graphs: Callable[[], int] = lambda: 0
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
    kept_graphs: int = 0
    graphs: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    error: str = ""

    def once(self, seed: int) -> tuple[list[float], float]:
        """Sample once. Returns the seconds of each evaluation, and those of the whole call of `run`."""
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
        """Do the first run, in which libraries choose their kernels. This run measures memory."""
        self.forget()  # so that only this variant's memory is measured
        peak = Peak(device)
        with logged() as lines:
            laps, _ = self.once(SEED)
        self.warm_up, self.memory, self.log = sum(laps), peak.read(), lines
        self.kept_graphs = self.count_kept_graphs()

    def stage(self, seed: int) -> None:
        """Time the stages of one run.

        The first runs of other variants may have made the model drop CUDA graphs of this variant. If so, the
        model captures these graphs again in the run that is timed here.
        """
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
        """A copy without the functions that keep the network in memory, such as `run`."""
        return replace(self, run=lambda seed: None, forget=lambda: None, count_kept_graphs=lambda: 0)

    def time(self, seed: int) -> None:
        laps, wall = self.once(seed)
        self.seconds.append(sum(laps))
        self.node_seconds.append(wall)
        self.steps.append(laps)


def take_turns(
    found: Sequence[Measured], device: torch.device, repeats: int, left: Callable[[], float]
) -> None:
    """Run all variants: first a warm-up run of each, then a run of each that times the stages, then the timed
    rounds.

    Each timed round runs every variant once, so that changes of the GPU's clock rate affect all variants
    alike. A round is only started if it will probably end in the time left: it is expected to take as long as
    the round before it. The warm-up runs take much longer, because they compile kernels.

    Args:
        found: the variants, dense first.
        device: the device on which the variants run.
        repeats: desired number of timed rounds; there are fewer if the time left is too short.
        left: function that returns the seconds left.
    """
    for each in found:
        if left() <= 0:
            each.error = "no time left"
            continue
        _guarded(each, lambda each=each: each.warm(device))
    if not repeats:
        return
    seconds = _round(found, lambda each: each.stage(SEED))
    for number in range(repeats):
        if left() < seconds:
            break
        seconds = _round(found, lambda each, number=number: each.time(SEED + number))


def _round(found: Sequence[Measured], work: Callable[[Measured], None]) -> float:
    """Call `work` for each variant that has not failed. Returns the seconds until the device has finished."""
    started = time.perf_counter()
    for each in found:
        if not each.error:
            _guarded(each, lambda each=each: work(each))
    _wait()
    return time.perf_counter() - started


def _guarded(each: Measured, work: Callable[[], None]) -> None:
    """Call `work` for a variant. If the call fails, keep its error in the variant, which is then skipped."""
    try:
        work()
    except Exception as error:
        each.error = f"{type(error).__name__}: {error}"[:500]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
