"""Profiles of dense and regional steps: RAS's own share of the time, and the code that waits for the
device.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..common.timing import Clock
from ..speed.cases import START_STEP, Variant
from ..speed.measured import SEED
from ..speed.run import Bench
from .ranges import MarkingClock, named_ranges
from .trace_shares import step_shares

STEPS = START_STEP + 7
CHOSEN = tuple(range(START_STEP + 1, STEPS - 1))
"""Indices of the profiled evaluations: all regional ones except the first regional one and the run's last
one."""


@torch.inference_mode()
def profiles(bench: Bench, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """One entry per variant, with its figures, or with the error if profiling it failed."""
    found = []
    for variant in variants:
        entry = {"case": bench.case.key, "variant": variant.key, "ratio": variant.ratio, "error": ""}
        try:
            entry |= profile_variant(bench, variant)
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
        found.append(entry)
    return found


def profile_variant(bench: Bench, variant: Variant) -> dict[str, Any]:
    """Sample a first time to warm up, a second time in the profiler, and on a GPU a third time to find the
    calls that wait for the device.
    """
    on_gpu = bench.device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with named_ranges():
        each = bench.measured(variant, MarkingClock(bench.device))
        each.once(SEED)
        with profile(activities=kinds) as profiler:
            each.once(SEED)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    figures = step_shares(events, CHOSEN)
    if on_gpu:
        figures["waiting_lines"] = waiting_lines(bench, variant)
    if variant.method == "ras":
        counts = [evaluation.active_share for evaluation in each.trace.evaluations]
        figures["active_share"] = counts[CHOSEN[0]]
        figures["ideal_step_share"] = 1 / bench.ideal([round(counts[CHOSEN[0]] * bench.n_tokens)])
    return figures


class WatchingClock(Clock):
    """A clock that turns on PyTorch's warnings about CUDA synchronization during the evaluations in
    CHOSEN.
    """

    def restart(self) -> None:
        super().restart()
        self._count = 0

    def mark(self) -> None:
        super().mark()
        if self._count == CHOSEN[0]:
            torch.cuda.set_sync_debug_mode("warn")
        if self._count == CHOSEN[-1] + 1:
            torch.cuda.set_sync_debug_mode("default")
        self._count += 1


def waiting_lines(bench: Bench, variant: Variant) -> dict[str, float]:
    """Lines of Python code that wait for the device, each with its number of waits per step."""
    each = bench.measured(variant, WatchingClock(bench.device))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            each.once(SEED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}"
        for w in caught
        if "called a synchronizing" in str(w.message)
    )
    return {place: count / len(CHOSEN) for place, count in places.most_common()}
