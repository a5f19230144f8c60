"""Many scenarios, and the summary."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from . import checks
from .play import Outcome, is_deterministic, play
from .scenario import Scenario

FLAT_MIB = 200
"""How much memory a soak may gain after its first scenarios, in MiB: caches of other libraries fill up."""

WARM = 40
"""Number of scenarios after which memory must stay flat."""


@dataclass
class Summary:
    """What a soak did.

    Attributes:
        seed: its seed.
        scenarios, runs: numbers of scenarios, and of sampling runs in them.
        regional, replayed: number of scenarios with regional steps, and with replayed calls.
        refused: number of scenarios that ComfyUI cannot sample itself.
        faults: how often each fault struck.
        failures: by the number of the scenario, what was wrong.
        memory_mib: memory of the process after WARM scenarios, and at the end.
        seconds: duration.
    """

    seed: int
    scenarios: int = 0
    runs: int = 0
    regional: int = 0
    replayed: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failures: dict[int, list[str]] = field(default_factory=dict)
    memory_mib: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_flat(self) -> bool:
        return len(self.memory_mib) < 2 or self.memory_mib[-1] - self.memory_mib[0] < FLAT_MIB

    def add(self, number: int, outcome: Outcome) -> None:
        """Count one scenario."""
        self.scenarios += 1
        self.runs += outcome.runs
        self.regional += outcome.regional > 0
        self.replayed += outcome.replayed > 0
        self.refused += outcome.refused
        if outcome.fault:
            self.faults[outcome.fault] += 1
        if outcome.failures:
            self.failures[number] = outcome.failures

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible values, to be committed."""
        return {**vars(self), "faults": dict(sorted(self.faults.items())), "seconds": round(self.seconds)}

    def text(self) -> str:
        """The summary in one line."""
        return (
            f"seed {self.seed}: {self.scenarios} scenarios ({self.regional} with regional steps, "
            f"{self.replayed} with replayed calls, {self.refused} that ComfyUI refuses), {self.runs} runs, "
            f"{sum(self.faults.values())} faults, {len(self.failures)} failures, {self.seconds:.0f} s, "
            f"memory {' -> '.join(map(str, self.memory_mib))} MiB"
        )


def soak(
    seed: int,
    numbers: Iterator[int],
    is_over: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Play scenarios until the numbers or the time are over.

    Args:
        seed: scenarios are drawn from it.
        numbers: which scenarios to play.
        is_over: whether to stop; asked before each scenario.
        report: gets a line for each failure.
    """
    summary, start = Summary(seed), time.perf_counter()
    with ready():
        for number in numbers:
            if is_over():
                break
            summary.add(number, outcome := _played(seed, number))
            for failure in outcome.failures:
                report(f"make soak ARGS='--seed {seed} --only {number}'  # {failure}")
            if summary.scenarios == WARM:
                summary.memory_mib.append(_memory_mib())
    summary.memory_mib.append(_memory_mib())
    summary.seconds = time.perf_counter() - start
    return summary


def _played(seed: int, number: int) -> Outcome:
    scenario = Scenario.draw(seed, number)
    outcome = play(scenario)
    apart = [each for each in outcome.failures if checks.APART in each]
    if apart and not is_deterministic(scenario):  # ComfyUI itself gives another latent each time
        outcome.failures = [each for each in outcome.failures if each not in apart]
    return outcome


@contextmanager
def ready() -> Iterator[None]:
    """In the body, captured calls are kept between runs, logs are off, and objects that existed before do not
    count as alive.
    """
    from ras_pack.ras_core.host import graphs_of_model

    kept, level = graphs_of_model.may_outlive_run, logging.root.manager.disable
    graphs_of_model.may_outlive_run = lambda *_: True
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        logging.disable(level)
        graphs_of_model.may_outlive_run = kept


def _memory_mib() -> int:
    return psutil.Process().memory_info().rss >> 20


def machine() -> dict[str, str]:
    """Versions, for a committed summary."""
    import comfyui_version

    return {"comfyui": comfyui_version.__version__, "torch": torch.__version__}
