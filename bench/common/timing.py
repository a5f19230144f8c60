"""Timestamps and memory figures of a device.

On a GPU, timestamps are CUDA events, so that taking a timestamp does not make the CPU wait for the GPU.
"""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import dataclass, field

import torch

from ...ras_core.run.timing import Timestamp, seconds_between, timestamp


@dataclass
class Stages:
    """Times the stages of a sampler node's call. To do so, it synchronizes the device at the start of each
    stage and of each evaluation.

    Attributes:
        seconds: total duration of each stage, by name.
        enqueue: for each evaluation, the CPU seconds to enqueue it on an idle device.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    enqueue: list[float] = field(default_factory=list)
    _name: str = ""
    _since: float = 0.0

    def enter(self, name: str) -> None:
        """Start a stage, and so end the previous one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now

    def enqueued(self) -> None:
        """Store the CPU seconds from the start of the current evaluation until now, when it is enqueued."""
        self.enqueue.append(time.perf_counter() - self._since)


class Clock:
    """Timestamps in a run: one at the start of each evaluation and one when sampling has ended.

    Attributes:
        stages: if set, it times every stage of the run. Set it only if the run's total time is not used,
            because timing the stages slows the run down.
    """

    stages: Stages | None = None

    def __init__(self, device: torch.device):
        self.device = device
        self._marks: list[Timestamp] = []

    def restart(self) -> None:
        self._marks = []

    def mark(self) -> None:
        self._marks.append(timestamp(self.device))

    def enter(self, stage: str) -> None:
        if self.stages is not None:
            self.stages.enter(stage)

    def enqueued(self) -> None:
        if self.stages is not None:
            self.stages.enqueued()

    def laps(self) -> list[float]:
        """Seconds between consecutive timestamps. Waits until the device has reached the last timestamp."""
        return [seconds_between(*pair) for pair in itertools.pairwise(self._marks)]


class Peak:
    """Measures GPU memory in bytes, from when this object is created until `read`. On a CPU, all figures are
    0.

    Attributes:
        before: bytes that torch's allocator had allocated when this object was created.
        allocated, reserved: peaks of the bytes that torch's allocator has allocated and reserved.
        taken: bytes that all processes use on the device when `read` is called. Only this figure includes the
            memory of CUDA graphs.
        peak: `allocated` plus the weights that dynamic VRAM keeps outside torch's allocator.
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
    """Bytes of weights that ComfyUI's dynamic VRAM holds on the device; 0 without dynamic VRAM."""
    import comfy.model_management

    models = {loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model}
    vbars = [vbar for model in models for vbar in getattr(model, "dynamic_vbars", {}).values()]
    return sum(vbar.loaded_size() for vbar in vbars)
