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

MOST = 1.3
"""If a run is measured to be more than this many times as fast as expected from its FLOPs, something has
slowed down its dense steps, with which the others are compared."""

CLEARLY_LESS = 0.8
"""A run that reaches less than this share of its expected speed-up was clearly less accelerated than planned,
if its times show it (see AGREE)."""

AGREE = 0.1
"""Times of a group agree if the middle half of them spans at most this fraction of their median. On an idle
computer it was 1 to 8 %; with other programs in bursts, 10 to 37 %."""

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
    dense = dense_seconds(evaluations)
    if dense is None or not any(e.kind is StepKind.REGIONAL for e in later):
        return None
    total = typical_seconds(later)
    return dense * len(later) / total if total > 0 else None


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


def is_implausible(evaluations: Sequence[Timed], measured: float | None, expected: float) -> bool:
    """Whether other programs are a likelier cause of a measured speed-up than the run itself: it is far above
    the expected one, or clearly below it although like evaluations did not take like times.
    """
    if measured is None:
        return False
    return measured > MOST * expected or (measured < CLEARLY_LESS * expected and not agree(evaluations))


def agree(evaluations: Sequence[Timed]) -> bool:
    """Whether the times in each group agree (see AGREE); the first evaluation does not count."""
    groups = _like(evaluations[1:])
    return all(_spread(like) <= AGREE * statistics.median(like) for like in groups if len(like) > 1)


def dense_seconds(evaluations: Sequence[Timed]) -> float | None:
    """The median time of the dense evaluations after the first evaluation; None if there are none."""
    dense = [each.seconds for each in evaluations[1:] if each.kind is StepKind.DENSE]
    return statistics.median(dense) if dense else None


def _spread(seconds: list[float]) -> float:
    """The range of the middle half of these times."""
    first, _, third = statistics.quantiles(seconds, method="inclusive")
    return third - first


def _like(evaluations: Sequence[Timed]) -> list[list[float]]:
    """The times of the evaluations, grouped by kind and share of tokens."""
    groups: dict[tuple[StepKind, float], list[float]] = defaultdict(list)
    for each in evaluations:
        groups[each.kind, each.active_share].append(each.seconds)
    return list(groups.values())
