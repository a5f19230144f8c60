"""Where a step's time goes, read from a profiler's Chrome trace. Pure.

Named ranges on the host say who launched what; a kernel belongs to the innermost range around its launch.
Letters: host times are those of the thread that launches, device times those of kernels and copies.
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
NETWORK = "network and host"
"""What no range of ours encloses."""

LAUNCHERS = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""Operations that need a result of the device on the host; on a GPU each of them waits as well."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Segments:
    """A time line cut where the innermost range changes: from starts[i] on it is names[i]."""

    starts: Sequence[float]
    names: Sequence[str]

    @classmethod
    def of(cls, ranges: Iterable[Event]) -> Segments:
        """From ranges that are nested in each other or apart."""
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
        """How long each name lasts between two moments."""
        found: Counter[str] = Counter()
        first = bisect.bisect_right(self.starts, start) - 1
        for i in range(first, len(self.starts)):
            if self.starts[i] >= end:
                break
            until = self.starts[i + 1] if i + 1 < len(self.starts) else end
            found[self.names[i]] += min(until, end) - max(self.starts[i], start)
        return +found  # without what lasts no time


def step_shares(events: Sequence[Event], chosen: Sequence[int]) -> dict[str, Any]:
    """Means over the chosen evaluations, each until the next one begins; times in milliseconds.

    Returns:
        wall_ms, device_ms: length of a step, and its kernels' time.
        host_ms_by, device_ms_by: the same by range.
        own_host_share, own_device_share: of them, what lies in our ranges; None where nothing was measured.
        kernels, launches: a step's kernels, and calls that launched them.
        waits, reads: calls a step, by "name in range".
        pageable_copies: a step's copies from or to host memory that the device cannot reach by itself.

    Raises:
        ValueError: the trace does not hold the evaluation after the last chosen one.
    """
    events = [e for e in events if "dur" in e]
    marks = sorted(float(e["ts"]) for e in events if e["name"] == EVALUATION and _is_range(e))
    if not chosen or len(marks) < max(chosen) + 2:
        raise ValueError(
            f"{len(marks)} evaluations in the trace; {list(chosen)} and the one after are needed"
        )
    segments = Segments.of(e for e in events if _is_range(e) and e["name"].startswith(PREFIX))
    windows = [pair for i, pair in enumerate(pairwise(marks)) if i in set(chosen)]
    host: Counter[str] = Counter()
    for window in windows:
        host += segments.times(*window)
    inside = [e for e in events if any(a <= float(e["ts"]) < b for a, b in windows)]
    launched = {_correlation(e): segments.at(float(e["ts"])) for e in inside if e.get("cat") in LAUNCHERS}
    work = [e for e in events if e.get("cat") in ON_DEVICE and _correlation(e) in launched]
    device: Counter[str] = Counter()
    for each in work:
        device[launched[_correlation(each)]] += float(each["dur"])
    count = len(windows)

    def a_step(names: Sequence[str]) -> dict[str, float]:
        found = Counter(f"{e['name']} in {segments.at(float(e['ts']))}" for e in inside if e["name"] in names)
        return {name: number / count for name, number in found.items()}

    return {
        "steps": count,
        "wall_ms": sum(b - a for a, b in windows) / count / 1000,
        "device_ms": sum(device.values()) / count / 1000,
        "host_ms_by": {name: time / count / 1000 for name, time in host.most_common()},
        "device_ms_by": {name: time / count / 1000 for name, time in device.most_common()},
        "own_host_share": _own_share(host),
        "own_device_share": _own_share(device),
        "kernels": len(work) / count,
        "launches": len({_correlation(e) for e in work}) / count,
        "waits": a_step(WAITS),
        "reads": a_step(READS),
        "pageable_copies": sum("Pageable" in e["name"] for e in work) / count,
    }


def _is_range(event: Event) -> bool:
    return event.get("cat") == "user_annotation"


def _correlation(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _own_share(times: Counter[str]) -> float | None:
    total = sum(times.values())
    return 1 - times[NETWORK] / total if total else None
