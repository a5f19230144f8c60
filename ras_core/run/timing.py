"""Timestamps of a run, taken without waiting for the device."""

from __future__ import annotations

import time

import torch

Timestamp = float | torch.cuda.Event


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
