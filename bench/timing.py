"""Clocks and memory of a device: CUDA events on a GPU, so that measuring waits for nothing."""

from __future__ import annotations

import gc
import itertools

import torch

from ..ras_core.clock import Moment, mark, seconds_between


class Clock:
    """Marks in a run: one at each evaluation's start and one when sampling has ended."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[Moment] = []

    def restart(self) -> None:
        self._marks = []

    def mark(self) -> None:
        self._marks.append(mark(self._device))

    def laps(self) -> list[float]:
        """Seconds from each mark to the next; waits for the device."""
        return [seconds_between(*pair) for pair in itertools.pairwise(self._marks)]


class Peak:
    """Memory of a GPU from now on, in bytes; zeros elsewhere.

    Attributes:
        before, allocated, reserved: allocated at the start, then the highest of both kinds; set by `read`.
        taken: by all that runs on the device, at the time of `read`: the allocator keeps what it has taken,
            and CUDA graphs have memory that is in none of the other numbers.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.before = self.allocated = self.reserved = self.taken = 0
        if self._on_gpu:
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def read(self) -> dict[str, int]:
        if self._on_gpu:
            self.allocated = torch.cuda.max_memory_allocated()
            self.reserved = torch.cuda.max_memory_reserved()
            free, total = torch.cuda.mem_get_info()
            self.taken = total - free
        names = ("before", "allocated", "reserved", "taken")
        return {name: getattr(self, name) for name in names}
