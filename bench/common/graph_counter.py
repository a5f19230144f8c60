"""Count all CUDA graph captures and replays in this process, whichever code makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

COUNTED = ("capture_end", "replay")


class GraphCounter:
    """Counts CUDA graph captures and replays from `install` on; the counts stay 0 if torch has no CUDA
    graphs.

    Call `install` before the first capture. It replaces methods of CUDAGraph, so it would miss calls from
    code that has already stored a bound method of a graph.

    Attributes:
        before_replay: called in each replay just before the graph is launched, to inject faults.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.before_replay: Callable[[], None] = lambda: None

    def install(self) -> GraphCounter:
        graph = getattr(torch.cuda, "CUDAGraph", None)
        for name in COUNTED:
            if hasattr(graph, name):
                setattr(graph, name, self._counting(name, getattr(graph, name)))
        return self

    def _counting(self, name: str, original: Any) -> Any:
        def counted(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self._counts[name] += 1
            if name == "replay":
                self.before_replay()
            return original(graph, *args, **kwargs)

        return counted

    def take(self) -> dict[str, int]:
        """Number of captures and of replays since `take` was last called."""
        found = {"captures": self._counts["capture_end"], "replays": self._counts["replay"]}
        self._counts.clear()
        return found
