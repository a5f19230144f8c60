"""Services that a run uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..graphs.preset import EvictableWeights
from ..graphs.session import GraphSession
from ..models.base import ModelAdapter
from .grouped_attention import GroupedAttention
from .live import View


@dataclass(frozen=True)
class Tools:
    """Services given to a run when it starts; all but the adapter are optional.

    Attributes:
        adapter: adapter of the network's family.
        view: observer of the run.
        graphs: the run's CUDA graphs.
        grouped: attention that does not repeat grouped K/V heads.
        weights: weights that ComfyUI may evict (dynamic VRAM).
        pause: returns a context manager for allocations that outlive a call; ComfyUI's compiler
            does not track those in its body.
    """

    adapter: ModelAdapter
    view: View | None = None
    graphs: GraphSession | None = None
    grouped: GroupedAttention | None = None
    weights: EvictableWeights | None = None
    pause: Callable[[], AbstractContextManager] | None = None
