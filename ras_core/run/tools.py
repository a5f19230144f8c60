"""The objects that `host/` gives to a run: its adapter, CUDA graphs, and access to ComfyUI's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from ..graphs.preset import EvictableWeights
from ..graphs.session import GraphSession
from ..models.base import ModelAdapter
from .grouped_attention import GroupedAttention
from .live import View
from .other_code import OtherCode
from .references import References


@dataclass(frozen=True)
class Tools:
    """The objects that `host/` gives to a run at its start. Only the adapter is required.

    Attributes:
        adapter: adapter of the network's family.
        view: an observer that gets reports while the run is sampling.
        graphs: the run's CUDA graphs.
        grouped: attention for networks whose query heads share K/V heads; it does not repeat these heads.
        weights: access to the network's weights if ComfyUI may evict them from device memory during a run, as
            it may in its dynamic VRAM mode.
        pause: returns a context manager for allocations that outlive a call. In the body of the `with`,
            ComfyUI's compiler does not track allocations: it gives a tracked allocation a fixed address,
            which later calls use again.
        interrupts: exceptions that ComfyUI raises when the user cancels a run.
    """

    adapter: ModelAdapter
    view: View | None = None
    graphs: GraphSession | None = None
    grouped: GroupedAttention | None = None
    weights: EvictableWeights | None = None
    pause: Callable[[], AbstractContextManager] | None = None
    interrupts: tuple[type[BaseException], ...] = ()

    @cached_property
    def other_code(self) -> OtherCode:
        """Finds code of other packs in the run's networks."""
        return OtherCode(self.adapter)

    @cached_property
    def references(self) -> References:
        """Notices that the run's reference images have changed."""
        return References()
