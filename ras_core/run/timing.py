"""Timestamps of a run, taken without waiting for the device."""

from __future__ import annotations

import time

import torch

Timestamp = float | torch.cuda.Event


def timestamp(device: torch.device) -> Timestamp:
    """Record the time at which the device finishes the work enqueued so far, not the time of this call."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """Seconds from one timestamp to another; waits until the device has reached the later one."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
