"""Timestamps of a run, taken without waiting for the device."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch

from ..method.schedule import StepKind

Timestamp = float | torch.cuda.Event

BUSY = 1.5
"""A time is an outlier if it differs from its group's median by more than this factor. On an idle GPU, the
times in a group differ by only a few percent."""

FEWEST = 4
"""Groups with fewer evaluations are not searched for outliers."""


class Timed(Protocol):
    """An evaluation that took this time."""

    kind: StepKind
    seconds: float

    @property
    def active_share(self) -> float:
        """Share of the image tokens that it processed."""


def timestamp(device: torch.device) -> Timestamp:
    """The time at which a CUDA device finishes the work enqueued so far; on other devices, the time now."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """Seconds from `start` to `end`. Waits until the device has reached `end`."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def measured_speedup(evaluations: Sequence[Timed]) -> float | None:
    """Estimated time of a dense run, divided by the time of this run; None if no estimate is possible.

    Each evaluation is assumed to take the median time of its group, the evaluations of the same kind and
    share of tokens. So a few evaluations that other programs have slowed down hardly change the result. The
    first evaluation counts in neither time, because kernels are loaded and autotuned during it.
    """
    later = evaluations[1:]
    dense = [e.seconds for e in later if e.kind is StepKind.DENSE]
    if not dense or not any(e.kind is StepKind.REGIONAL for e in later):
        return None
    total = typical_seconds(later)
    return statistics.median(dense) * len(later) / total if total > 0 else None


def typical_seconds(evaluations: Sequence[Timed]) -> float:
    """The time of these evaluations, if each took the median time of its group."""
    return sum(len(like) * statistics.median(like) for like in _like(evaluations))


def is_disturbed(evaluations: Sequence[Timed]) -> bool:
    """Whether the times in a group differ so much that a ratio of times is unreliable: more than a quarter of
    them are outliers (see BUSY).
    """
    for like in _like(evaluations[1:]):
        middle = statistics.median(like)
        odd = sum(not middle / BUSY <= seconds <= middle * BUSY for seconds in like)
        if len(like) >= FEWEST and odd > len(like) / 4:
            return True
    return False


def _like(evaluations: Sequence[Timed]) -> list[list[float]]:
    """The times of the evaluations, grouped by kind and share of tokens."""
    groups: dict[tuple[StepKind, float], list[float]] = defaultdict(list)
    for each in evaluations:
        groups[each.kind, each.active_share].append(each.seconds)
    return list(groups.values())
