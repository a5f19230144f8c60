"""Clocks and memory of a device: CUDA events on a GPU, so that measuring waits for nothing."""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import dataclass, field

import torch

from ..ras_core.clock import Moment, mark, seconds_between


@dataclass
class Stages:
    """What a call of the sampler node consists of, the device waited for between stages and evaluations.

    Attributes:
        seconds: by stage, in order.
        enqueue: seconds of the CPU in each evaluation, which starts on an idle device.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    enqueue: list[float] = field(default_factory=list)
    _name: str = ""
    _since: float = 0.0

    def enter(self, name: str) -> None:
        """A stage begins, which ends the one before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now

    def enqueued(self) -> None:
        """The CPU is done with the evaluation that began last."""
        self.enqueue.append(time.perf_counter() - self._since)


class Clock:
    """Marks in a run: one at each evaluation's start and one when sampling has ended.

    Attributes:
        stages: told of every stage while it is set, for runs whose whole time does not count.
    """

    stages: Stages | None = None

    def __init__(self, device: torch.device):
        self.device = device
        self._marks: list[Moment] = []

    def restart(self) -> None:
        self._marks = []

    def mark(self) -> None:
        self._marks.append(mark(self.device))

    def enter(self, stage: str) -> None:
        if self.stages is not None:
            self.stages.enter(stage)

    def enqueued(self) -> None:
        if self.stages is not None:
            self.stages.enqueued()

    def laps(self) -> list[float]:
        """Seconds from each mark to the next; waits for the device."""
        return [seconds_between(*pair) for pair in itertools.pairwise(self._marks)]


class Peak:
    """Memory of a GPU from now on, in bytes; zeros elsewhere.

    Attributes:
        before, allocated, reserved: allocated at the start, then the highest of both kinds; set by `read`.
        taken: by all that runs on the device, at the time of `read`: the allocator keeps what it has taken,
            and CUDA graphs have memory that is in none of the other numbers.
        peak: `allocated`, and the weights that dynamic VRAM keeps outside of torch's allocator.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.before = self.allocated = self.reserved = self.taken = self.peak = 0
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
            self.peak = self.allocated + weight_pages()
        names = ("before", "allocated", "reserved", "taken", "peak")
        return {name: getattr(self, name) for name in names}


def weight_pages() -> int:
    """Bytes of weights that ComfyUI's dynamic VRAM has on the device; 0 without it."""
    import comfy.model_management

    models = {loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model}
    vbars = [vbar for model in models for vbar in getattr(model, "dynamic_vbars", {}).values()]
    return sum(vbar.loaded_size() for vbar in vbars)
