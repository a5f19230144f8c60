"""Compute from a profiler's Chrome trace where the time of a step goes. This module does not import torch.

A kernel is attributed to the innermost named range that was open on the CPU when the kernel was launched. CPU
times are those of the thread that launches kernels; device times are those of kernels and copies.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PREFIX = "ras: "
EVALUATION = "bench: evaluation"
NETWORK = "network and ComfyUI"
"""Name under which the time outside all ranges of RAS is counted: time in the network and in ComfyUI."""

LAUNCHERS = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""PyTorch operations that read a tensor's values on the CPU. If the tensor is on a GPU, they wait for the
GPU."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Segments:
    """A timeline, split where the innermost range changes: from starts[i] on, the innermost range is
    names[i].
    """

    starts: Sequence[float]
    names: Sequence[str]

    @classmethod
    def of(cls, ranges: Iterable[Event]) -> Segments:
        """Build the timeline from ranges, each two of which are either nested or disjoint."""
        edges = []
        for each in ranges:
            start, length = float(each["ts"]), float(each["dur"])
            edges += [(start, 1, -length, each["name"]), (start + length, 0, length, each["name"])]
        starts, names, stack = [float("-inf")], [NETWORK], [NETWORK]
        for time, opens, _, name in sorted(edges):
            if opens:
                stack.append(name.removeprefix(PREFIX))
            else:
                stack.pop()
            starts.append(time)
            names.append(stack[-1])
        return cls(starts, names)

    def at(self, time: float) -> str:
        return self.names[bisect.bisect_right(self.starts, time) - 1]

    def times(self, start: float, end: float) -> Counter[str]:
        """Total time between two timestamps in which each name was the innermost range."""
        found: Counter[str] = Counter()
        first = bisect.bisect_right(self.starts, start) - 1
        for i in range(first, len(self.starts)):
            if self.starts[i] >= end:
                break
            until = self.starts[i + 1] if i + 1 < len(self.starts) else end
            found[self.names[i]] += min(until, end) - max(self.starts[i], start)
        return +found  # drops names of zero duration


def step_shares(events: Sequence[Event], chosen: Sequence[int]) -> dict[str, Any]:
    """Mean figures of the chosen evaluations (steps). A step lasts from the start of its evaluation to the
    start of the next evaluation. Times are in milliseconds.

    Returns:
        wall_ms, device_ms: duration of a step, and total duration of its kernels and copies.
        cpu_ms_by, device_ms_by: CPU time and device time of a step, by range.
        own_cpu_share, own_device_share: the part of the CPU time and of the device time that is in RAS's
            ranges; None if no time was measured.
        kernels, launches: kernels and copies per step, and calls per step that launched them.
        waits, reads: two dictionaries with the number of calls per step: those that wait for the device, and
            those that read a tensor's value on the CPU. A key has the form "CALL in RANGE".
        pageable_copies: copies per step from or to main memory that is not pinned.

    Raises:
        ValueError: the trace ends before the evaluation that follows the last chosen one.
    """
    events = [e for e in events if "dur" in e]
    marks = sorted(float(e["ts"]) for e in events if e["name"] == EVALUATION and _is_range(e))
    if not chosen or len(marks) < max(chosen) + 2:
        raise ValueError(
            f"the trace has {len(marks)} evaluations; evaluations {list(chosen)} and the next one are needed"
        )
    segments = Segments.of(e for e in events if _is_range(e) and e["name"].startswith(PREFIX))
    windows = [pair for i, pair in enumerate(pairwise(marks)) if i in set(chosen)]
    on_cpu: Counter[str] = Counter()
    for window in windows:
        on_cpu += segments.times(*window)
    inside = [e for e in events if any(a <= float(e["ts"]) < b for a, b in windows)]
    launched = {_correlation(e): segments.at(float(e["ts"])) for e in inside if e.get("cat") in LAUNCHERS}
    work = [e for e in events if e.get("cat") in ON_DEVICE and _correlation(e) in launched]
    device: Counter[str] = Counter()
    for each in work:
        device[launched[_correlation(each)]] += float(each["dur"])
    count = len(windows)

    def per_step(names: Sequence[str]) -> dict[str, float]:
        found = Counter(f"{e['name']} in {segments.at(float(e['ts']))}" for e in inside if e["name"] in names)
        return {name: number / count for name, number in found.items()}

    return {
        "steps": count,
        "wall_ms": sum(b - a for a, b in windows) / count / 1000,
        "device_ms": sum(device.values()) / count / 1000,
        "cpu_ms_by": {name: time / count / 1000 for name, time in on_cpu.most_common()},
        "device_ms_by": {name: time / count / 1000 for name, time in device.most_common()},
        "own_cpu_share": _own_share(on_cpu),
        "own_device_share": _own_share(device),
        "kernels": len(work) / count,
        "launches": len({_correlation(e) for e in work}) / count,
        "waits": per_step(WAITS),
        "reads": per_step(READS),
        "pageable_copies": sum("Pageable" in e["name"] for e in work) / count,
    }


def _is_range(event: Event) -> bool:
    return event.get("cat") == "user_annotation"


def _correlation(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _own_share(times: Counter[str]) -> float | None:
    total = sum(times.values())
    return 1 - times[NETWORK] / total if total else None
