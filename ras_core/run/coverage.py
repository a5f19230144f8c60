"""Whether a call ran with our hooks in all blocks, and not as a graph or as compiled code."""

from __future__ import annotations

from collections.abc import Hashable

from ..graphs.network_identity import CORE_GRAPH
from ..models.base import ModelAdapter
from .call import Call
from .partial_forward import NetworkCall


class Coverage:
    """Blocks and attentions of a run's calls. The first dense call of each variant shows what to expect."""

    def __init__(self, adapter: ModelAdapter):
        self._adapter = adapter
        self._expected: dict[Hashable, tuple[int, int]] = {}  # blocks and attentions, by variant

    def gap(self, call: Call, hooks: NetworkCall) -> str | None:
        """What of the network ran without our hooks in a call; None if nothing did."""
        seen, blocks = (hooks.blocks_seen, hooks.attentions_seen), self._adapter.blocks(call.network)
        has_graphs = any(vars(block).get(CORE_GRAPH) for block in blocks)
        if has_graphs and seen[0] < len(blocks):
            expected = (len(blocks), seen[1])
        else:
            expected = self._expected.setdefault(call.variant, seen)
        if seen == expected:
            return None
        by_others = "another node skips or replaces the rest"
        cause = "ComfyUI's own graphs run no hooks" if has_graphs else by_others
        return (
            f"{seen[0]} of {expected[0]} blocks and {seen[1]} of {expected[1]} attentions could be followed "
            f"({cause})"
        )
