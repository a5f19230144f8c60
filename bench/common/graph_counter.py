"""Count all CUDA graph captures and replays in this process, whichever code makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

COUNTED = ("capture_end", "replay")


class GraphCounter:
    """Counts captures and replays after `install`; zeros if torch has no CUDA graphs.

    Install it before the first capture, since other code may keep a graph's bound methods.

    Attributes:
        before_replay: called in each replay before the launch, to inject faults.
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
        """Captures and replays since the last call."""
        found = {"captures": self._counts["capture_end"], "replays": self._counts["replay"]}
        self._counts.clear()
        return found
