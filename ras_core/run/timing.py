"""Moments of a run, marked without waiting for the device."""

from __future__ import annotations

import time

import torch

Moment = float | torch.cuda.Event


def mark(device: torch.device) -> Moment:
    """Now: on a CUDA device the moment when it gets there with its work, not when the host queued it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Moment, end: Moment) -> float:
    """Seconds from one mark to another; waits until the device has reached the later one."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
