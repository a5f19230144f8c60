"""Tracks which K/V buffers of a model's `GraphStore` one run uses, and for which calls."""

from __future__ import annotations

from collections.abc import Sequence

from ..kv.store import Branch
from .capture import Slots
from .eligibility import Signature
from .store import Buffers, GraphStore


class Leases:
    """The K/V buffers of a store that one run uses, by the branches of the dense call that fills them."""

    def __init__(self, store: GraphStore):
        self._store = store
        self._held: dict[tuple[Branch, ...], Buffers] = {}

    def lend(self, branches: tuple[Branch, ...], signature: Signature, format_name: str) -> Buffers | None:
        """Lend K/V buffers to a dense call of these branches; None if the store has no unused buffers that
        fit.
        """
        for held in [held for held in self._held if set(held) <= set(branches)]:
            self._held.pop(held).is_lent = False  # lent to an earlier dense call of these branches
        taken = {address for each in self._store.buffers if each.is_lent for address in each.addresses}
        for each in self._store.buffers:
            if each.signature == signature and each.format_name == format_name and not each.addresses & taken:
                each.is_lent = True
                self._held[branches] = each
                return each
        return None

    def find(self, branches: tuple[Branch, ...], slots: Slots) -> Buffers | None:
        """The buffers lent to these branches. None if none are lent, or if `slots`, the K/V slots that the
        run now uses for these branches, do not consist of the buffers' tensors.
        """
        buffers = self._held.get(branches)
        return buffers if buffers is not None and buffers.match(slots) else None

    def add(self, branches: tuple[Branch, ...], buffers: Buffers) -> None:
        """Add buffers whose first call was just captured. They replace the buffers that these branches used
        before.
        """
        known = self._held.get(branches)
        if known is not buffers:
            self._store.buffers = [each for each in self._store.buffers if each is not known] + [buffers]
            self._held[branches] = buffers

    def of_any(self, branches: Sequence[Branch]) -> list[Buffers]:
        """Buffers lent to calls that evaluate at least one of these branches."""
        return [buffers for held, buffers in self._held.items() if set(branches) & set(held)]

    def release(self) -> None:
        """Take back all buffers that the run has borrowed, and free the buffers that have no captured call.

        If ComfyUI grouped the branches into other calls during the run, the buffers of the earlier calls are
        still lent. They are taken back too.
        """
        self._store.buffers = [each for each in self._store.buffers if each.calls]
        for buffers in self._store.buffers:
            buffers.is_lent = False
        self._held.clear()
