"""What a run works with beside its own state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..graphs.residency import EvictableWeights
from ..graphs.session import GraphSession
from ..models.base import ModelAdapter
from .grouped_attention import GroupedAttention
from .live import View


@dataclass(frozen=True)
class Tools:
    """Given to a run when it starts; all but the adapter may be missing.

    Attributes:
        adapter: what is known of the network's family.
        view: somebody who watches the run.
        graphs: its CUDA graphs.
        grouped: attention to K/V heads that are not repeated.
        weights: weights that ComfyUI may evict (dynamic VRAM).
        pause: makes a context for allocations that outlive a call.
    """

    adapter: ModelAdapter
    view: View | None = None
    graphs: GraphSession | None = None
    grouped: GroupedAttention | None = None
    weights: EvictableWeights | None = None
    pause: Callable[[], AbstractContextManager] | None = None
