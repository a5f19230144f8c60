"""The noise level of each evaluation, as a number, without waiting for the device where the order is clear.

A sampler hands its noise level over as a tensor on the device. Reading it waits until the device has done all
that it was given, and the device then waits for the program: at every step an H100 is idle for some 2 ms, of
13 that a step on an eighth of SD3-medium's tokens takes at 1024 px. Most samplers evaluate once at each level
of the schedule. Where a run has begun like that, the next level is expected to be the next evaluation's; the
device's own number is read a little later, when it is there. A sampler that leaves the order is noticed then,
and its levels are read as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

LEARNED = 3
"""Evaluations in the schedule's order before the next one is expected to follow."""

LATEST = 2
"""Evaluations after which a number is waited for."""

TOLERANCE = 1e-5
"""Relative difference of two numbers for the same level."""


class NoiseLevels:
    """The noise levels of one run.

    Args:
        schedule: its levels.
        transfer: brings a number from the device while work goes on; None: the one for CUDA devices, and
            elsewhere
            none, since reading a number waits for nothing there.
    """

    def __init__(self, schedule: Sequence[float], transfer: type[Arriving] | None = None):
        self._schedule = schedule
        self._transfer = transfer
        self._next = 0
        self._in_order = True
        self._pending: deque[Arriving] = deque()

    def read(self, level: Tensor) -> float:
        """The level of the evaluation that begins, (1,) on any device."""
        expected = self._expected(level)
        if expected is None:
            found = float(level)
            self._in_order = self._in_order and self._is_next(found)
        else:
            found = expected
            self._pending.append((self._transfer or Arriving)(level, expected))
        self._next += 1
        return found

    def _expected(self, level: Tensor) -> float | None:
        """The next level where it is clear; None where it has to be read."""
        self._in_order = self._in_order and self._are_right()
        if not self._in_order or (self._transfer is None and level.device.type != "cuda"):
            return None
        return self._schedule[self._next] if LEARNED <= self._next < len(self._schedule) else None

    def _is_next(self, found: float) -> bool:
        """The first level may differ: ComfyUI moves it where a model knows no level so high."""
        return self._next == 0 or (
            self._next < len(self._schedule) and _is_same(found, self._schedule[self._next])
        )

    def _are_right(self) -> bool:
        """Whether expectations held, as far as their numbers have arrived; old ones are waited for."""
        while self._pending and self._pending[0].has_arrived(len(self._pending) >= LATEST):
            if not self._pending.popleft().is_right:
                return False
        return True


class Arriving:
    """A number on its way from a CUDA device, and what it is expected to be."""

    def __init__(self, level: Tensor, expected: float):
        self._expected = expected
        self._number = torch.empty(1, dtype=level.dtype, pin_memory=True).copy_(level, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def has_arrived(self, wait: bool) -> bool:
        if wait:
            self._event.synchronize()
        return wait or self._event.query()

    @property
    def is_right(self) -> bool:
        return _is_same(float(self._number), self._expected)


def _is_same(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
