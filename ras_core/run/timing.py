"""Timestamps of a run, taken without waiting for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from ..method.schedule import StepKind

Timestamp = float | torch.cuda.Event


class Timed(Protocol):
    """An evaluation that took this time."""

    kind: StepKind
    seconds: float


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

    The dense run's evaluations are assumed to take the median time of the dense evaluations of this run. The
    first evaluation counts in neither time, because kernels are loaded and autotuned during it.
    """
    later = evaluations[1:]
    dense = [e.seconds for e in later if e.kind is StepKind.DENSE]
    if not dense or not any(e.kind is StepKind.REGIONAL for e in later):
        return None
    total = sum(e.seconds for e in later)
    return statistics.median(dense) * len(later) / total if total > 0 else None
