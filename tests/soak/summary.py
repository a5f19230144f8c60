"""Plays many scenarios, and summarises the results."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from . import checks, memory
from .play import Outcome, is_deterministic, play
from .scenario import Scenario

EVERY = 10
"""The first of each ten scenarios is played again, to measure whether it leaks memory."""


@dataclass
class Summary:
    """The results of a soak.

    Attributes:
        seed: seed from which the scenarios were drawn.
        scenarios: number of scenarios.
        runs: number of sampling runs in all scenarios.
        regional: number of scenarios whose first run with RAS had regional steps.
        replayed: number of scenarios with an evaluation in which all network calls were replayed.
        refused: number of scenarios for which ComfyUI raises an error even without RAS.
        faults: for each fault, the number of scenarios in which it struck.
        failures: for each failing scenario, by its number: sentences that say what was wrong.
        measured: number of scenarios that were played again, to measure whether they leak memory.
        memory_mib: memory of the process in MiB after the first scenario and at the end. It is no measure of
            a leak (see `memory`), so no limit is set.
        seconds: duration of the soak.
    """

    seed: int
    scenarios: int = 0
    runs: int = 0
    regional: int = 0
    replayed: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failures: dict[int, list[str]] = field(default_factory=dict)
    measured: int = 0
    memory_mib: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, number: int, outcome: Outcome) -> None:
        """Add the outcome of scenario `number`."""
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
        """The summary as JSON-compatible values, for a file in the repository."""
        return {**vars(self), "faults": dict(sorted(self.faults.items())), "seconds": round(self.seconds)}

    def text(self) -> str:
        """The summary in one line."""
        return (
            f"seed {self.seed}: {self.scenarios} scenarios ({self.regional} with regional steps, "
            f"{self.replayed} with replayed calls, {self.refused} that ComfyUI refuses), {self.runs} runs, "
            f"{sum(self.faults.values())} faults, {len(self.failures)} failures, {self.seconds:.0f} s, "
            f"{self.measured} measured for leaks, memory {' -> '.join(map(str, self.memory_mib))} MiB"
        )


def soak(
    seed: int,
    numbers: Iterator[int],
    is_over: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Play scenarios until there are no more numbers or the time is over.

    Args:
        seed: seed from which the scenarios are drawn.
        numbers: numbers of the scenarios to play.
        is_over: function that returns whether the time is over; called before each scenario.
        report: function that is called with a line of text for each failure.
    """
    summary, start = Summary(seed), time.perf_counter()
    with ready():
        for number in numbers:
            if is_over():
                break
            outcome = _played(seed, number)
            if summary.scenarios % EVERY == 0:
                outcome.failures += memory.leaked(partial(play, Scenario.draw(seed, number)))
                summary.measured += 1
            summary.add(number, outcome)
            for failure in outcome.failures:
                report(f"make soak ARGS='--seed {seed} --only {number}'  # {failure}")
            resident = memory.resident_mib()  # each time, so that freed memory does not become scattered
            if summary.scenarios == 1:
                summary.memory_mib.append(resident)
    summary.memory_mib.append(memory.resident_mib())
    summary.seconds = time.perf_counter() - start
    return summary


def _played(seed: int, number: int) -> Outcome:
    scenario = Scenario.draw(seed, number)
    outcome = play(scenario)
    apart = [each for each in outcome.failures if checks.APART in each]
    if apart and not is_deterministic(scenario):  # without RAS, the latent differs each time too
        outcome.failures = [each for each in outcome.failures if each not in apart]
    return outcome


@contextmanager
def ready() -> Iterator[None]:
    """In the body of the `with`, captured calls are kept from one run to the next, logging is off, and the
    checks of memory ignore objects that existed before.
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


def machine() -> dict[str, str]:
    """The versions of ComfyUI and PyTorch, for a summary in the repository."""
    import comfyui_version

    return {"comfyui": comfyui_version.__version__, "torch": torch.__version__}
