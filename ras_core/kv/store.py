"""Keys and values of every token, kept per branch, so that active tokens attend to the whole picture
(equation 2).

The host may evaluate two branches in one call at one step and in two calls at the next, as free memory
allows. Rows are therefore kept under their branch, and a call with another grouping gets them cut and joined
anew.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..errors import RegionalAbort
from ..rows import Pair, Places
from .arena import Arena
from .forecast import TIMES, Ahead, ForecastSequence, Times
from .storage import Float8Sequence, HostSequence, Keep, Offloader, Sequence

Branch = Hashable
Slot = tuple[int, int]
"""Which attention: (block, from the first that is shortened on; how many attentions in it came before)."""


def keeper(storage: str) -> Keep | None:
    """How a run keeps keys and values under a setting of `kv_cache`; None for "off"."""
    if storage == "cpu":
        return partial(HostSequence.of, offloader=Offloader())
    return {
        "gpu": Sequence.of, "fp8": Float8Sequence.of, "off": None, "forecast": ForecastSequence.of,
    }[storage]  # fmt: skip


@dataclass
class _Group:
    """The branches of one call, and the sequences they share, branch after branch."""

    branches: tuple[Branch, ...]
    slots: dict[Slot, Sequence] = field(default_factory=dict)


class KVStore:
    """The K/V cache of one run.

    Args:
        n_tokens: image tokens of the whole picture.
        storage: how keys and values are kept, as `kv_cache` names it; "off" for a run that keeps none.
        branch_nbytes: what they take of each branch, about; 0 where that is not known.

    Attributes:
        keep: what keeps the K/V of a dense call, or None.
    """

    def __init__(self, n_tokens: int, storage: str = "gpu", branch_nbytes: int = 0):
        self.n_tokens = n_tokens
        self._branch_nbytes = branch_nbytes
        self.storage = storage
        self.keep = keeper(storage)
        self._groups: dict[Branch, _Group] = {}

    def __contains__(self, branch: Branch) -> bool:
        return branch in self._groups

    @property
    def forecasts(self) -> bool:
        """Whether cached rows are continued, which takes two evaluations of them."""
        return self.storage == ForecastSequence.storage

    def keep_for(self, branches: tuple[Branch, ...]) -> Keep | None:
        """As `keep`, for one call: what it keeps on the device comes to stand in one piece of memory."""
        if self.keep is None or self.storage == HostSequence.storage:
            return self.keep
        return partial(self.keep, arena=Arena(self._branch_nbytes * len(branches)))

    def nbytes(self) -> int:
        groups = {id(group): group for group in self._groups.values()}
        return sum(seq.nbytes() for group in groups.values() for seq in group.slots.values())

    def drop(self, branches: tuple[Branch, ...]) -> None:
        """Forget what is cached for these branches; other branches of their calls keep theirs."""
        for branch in branches:
            if branch in self._groups:
                self._isolate(self._groups[branch])
        for branch in branches:
            self._groups.pop(branch, None)

    def begin_fill(self, branches: tuple[Branch, ...]) -> dict[Slot, Sequence]:
        """Slots to write a dense call's K/V into; buffers of the same grouping are written over, and those of
        another are kept where they tell how rows change.
        """
        if self.forecasts and all(branch in self for branch in branches):
            return self.slots_for(branches)
        group = self._groups.get(branches[0])
        if group is not None and group.branches == branches:
            return group.slots
        self.drop(branches)
        return {}

    def end_fill(self, branches: tuple[Branch, ...], slots: dict[Slot, Sequence]) -> None:
        """The dense call went through: its slots are whole now."""
        group = _Group(branches, slots)
        for branch in branches:
            self._groups[branch] = group

    def slots_for(self, branches: tuple[Branch, ...]) -> dict[Slot, Sequence]:
        """Slots of a regional call over these branches, regrouped when the last call had other groups."""
        group = self._groups[branches[0]]
        if group.branches != branches:
            group = self._join(branches)
        return group.slots

    def _isolate(self, group: _Group) -> None:
        for part, branch in enumerate(group.branches):
            own = {slot: seq.chunk(part, len(group.branches)) for slot, seq in group.slots.items()}
            self._groups[branch] = _Group((branch,), own)

    def _join(self, branches: tuple[Branch, ...]) -> _Group:
        for branch in branches:
            self._isolate(self._groups[branch])
        parts = [self._groups[branch].slots for branch in branches]
        slots = {slot: own.joined([part[slot] for part in parts[1:]]) for slot, own in parts[0].items()}
        joined = _Group(branches, slots)
        for branch in branches:
            self._groups[branch] = joined
        return joined


def fill(
    slots: dict[Slot, Sequence],
    slot: Slot,
    key: Tensor,
    value: Tensor,
    prefix: int,
    suffix: int,
    keep: Keep = Sequence.of,
) -> None:
    """Keep the K/V of a dense call, (bb, r, ...) each, in the way that `keep` does."""
    kept = slots.get(slot)
    if kept is not None and kept.takes(key, value, prefix):
        kept.write(key, value)
    else:
        slots[slot] = keep(key, value, prefix, suffix)


def update(
    slots: dict[Slot, Sequence],
    slot: Slot,
    fresh: Pair,
    active_idx: Tensor,
    n_tokens: int,
    borders: tuple[int, int],
    places: Places | None = None,
    ahead: Ahead | None = None,
) -> Pair:
    """Write a regional call's fresh rows over the cached ones and return the whole key and value.

    Args:
        slots, slot: where.
        fresh: key and value of [prefix | active | suffix], (bb, r_kept, ...) each.
        active_idx: (bb, n_active) int64.
        n_tokens: image tokens of the whole picture.
        borders: rows of text before and of padding after the image rows in this call.
        places: those of the above where the caller has them.
        ahead: how far rows are continued, in the form that can do that (kv/forecast.py).

    Returns:
        (bb, prefix + n_tokens + suffix, ...) each; read them before the call's next `update`, which may
        overwrite them.

    Raises:
        RegionalAbort: this attention was never seen in a dense call.
    """
    sequence, (prefix, suffix) = slots.get(slot), borders
    if sequence is None:
        raise RegionalAbort(f"attention {slot} has no cached keys and values")
    if sequence.prefix != prefix or sequence.suffix != suffix:
        sequence = slots[slot] = sequence.with_borders(prefix, suffix)
    if places is None:
        places = Places.of(active_idx, n_tokens, prefix, suffix)
    whole = sequence.update(places, fresh) if ahead is None else sequence.update_ahead(places, fresh, ahead)
    if sequence.is_fetched and (following := _after(slots, slot)) is not None:
        following.prefetch()
    return whole


def pass_time(slots: dict[Slot, Sequence], sigma: Tensor, n_tokens: int) -> None:
    """Note that a dense call at sigma, (bb,), evaluates all tokens."""
    if TIMES not in slots:
        slots[TIMES] = Times.start(sigma, n_tokens)
    slots[TIMES].pass_all(sigma)


def weights_ahead(
    slots: dict[Slot, Sequence], sigma: Tensor, active_idx: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Note that a regional call at sigma, (bb,), evaluates these tokens: weights as `Times.pass_active`
    gives them; None in forms that continue nothing.
    """
    times = slots.get(TIMES)
    return None if times is None else times.pass_active(sigma, active_idx)


def _after(slots: dict[Slot, Sequence], slot: Slot) -> Sequence | None:
    """The attention that comes next: a dense call filled them in its order."""
    order = iter(slots)
    next(each for each in order if each == slot)
    return slots[following] if (following := next(order, None)) is not None else None
