"""Checks that this pack's hooks ran in all blocks of a call, as CUDA graphs and compiled code skip hooks."""

from __future__ import annotations

from collections.abc import Hashable

from ..graphs.code_identity import CORE_GRAPH
from ..models.base import ModelAdapter
from .call import Call
from .partial_forward import NetworkCall


class Coverage:
    """Compares the numbers of blocks and attentions in which the hooks ran with the expected numbers. The
    expected numbers were counted in the first dense call with the same variant (`Call.variant`).
    """

    def __init__(self, adapter: ModelAdapter):
        self._adapter = adapter
        self._expected: dict[Hashable, tuple[int, int]] = {}  # numbers of blocks and attentions

    def gap(self, call: Call, hooks: NetworkCall) -> str | None:
        """How much of the network ran without the hooks, as a sentence; None if the hooks ran everywhere."""
        seen, blocks = (hooks.blocks_seen, hooks.attentions_seen), self._adapter.blocks(call.network)
        has_graphs = any(vars(block).get(CORE_GRAPH) for block in blocks)
        if has_graphs and seen[0] < len(blocks):
            expected = (len(blocks), seen[1])
        else:
            expected = self._expected.setdefault(call.variant, self._least(call, seen))
        if seen == expected:
            return None
        by_others = "another node skips or replaces the other ones"
        cause = "ComfyUI's own CUDA graphs skip hooks" if has_graphs else by_others
        return (
            f"this pack's hooks ran in {seen[0]} of {expected[0]} blocks and {seen[1]} of {expected[1]} "
            f"attentions ({cause})"
        )

    def _least(self, call: Call, seen: tuple[int, int]) -> tuple[int, int]:
        """The numbers expected of a call whose first dense call had `seen`: at least those of the network's
        family, unless another node replaces blocks.
        """
        if call.forward.replaced_blocks:
            return seen
        of_family = len(self._adapter.blocks(call.network)), self._adapter.attentions(call.network)
        return max(seen[0], of_family[0]), max(seen[1], of_family[1])
