"""Where a step's time goes, read from a profiler's Chrome trace. Pure.

Named ranges on the CPU side tell which code launched a kernel: the innermost range around the launch.
CPU times are those of the launching thread, device times those of kernels and copies.
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
"""Work outside all of our ranges."""

LAUNCHERS = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""Operations that read a result on the CPU side; on a GPU each of them also waits."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Segments:
    """A timeline, split where the innermost range changes: names[i] is the range from starts[i] on."""

    starts: Sequence[float]
    names: Sequence[str]

    @classmethod
    def of(cls, ranges: Iterable[Event]) -> Segments:
        """Build the timeline from ranges that are nested or disjoint."""
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
        """Total duration of each name between two timestamps."""
        found: Counter[str] = Counter()
        first = bisect.bisect_right(self.starts, start) - 1
        for i in range(first, len(self.starts)):
            if self.starts[i] >= end:
                break
            until = self.starts[i + 1] if i + 1 < len(self.starts) else end
            found[self.names[i]] += min(until, end) - max(self.starts[i], start)
        return +found  # drops names of zero duration


def step_shares(events: Sequence[Event], chosen: Sequence[int]) -> dict[str, Any]:
    """Means over the chosen evaluations, each from its start to that of the next; times in milliseconds.

    Returns:
        wall_ms, device_ms: duration of a step, and of its kernels.
        cpu_ms_by, device_ms_by: CPU and device time by range.
        own_cpu_share, own_device_share: share of these times in our ranges; None if nothing was measured.
        kernels, launches: kernels per step, and calls that launched them.
        waits, reads: calls per step, by "name in range".
        pageable_copies: copies per step from or to main memory that is not pinned.

    Raises:
        ValueError: the trace does not hold the evaluation after the last chosen one.
    """
    events = [e for e in events if "dur" in e]
    marks = sorted(float(e["ts"]) for e in events if e["name"] == EVALUATION and _is_range(e))
    if not chosen or len(marks) < max(chosen) + 2:
        raise ValueError(f"{len(marks)} evaluations in the trace; {list(chosen)} and the next one are needed")
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
