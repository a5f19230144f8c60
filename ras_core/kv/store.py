"""The K/V cache of a run, kept separately for each branch.

ComfyUI may evaluate two branches in one call at one step and in two calls at the next, depending on free
memory. So the store knows which rows belong to which branch, and it splits or joins rows for a call that
groups the branches differently than the call before.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial

from .arena import Arena
from .extrapolation import Times
from .formats import FORMATS, keeper
from .plain import Keep, KVRows, Slots

Branch = Hashable


@dataclass
class _Group:
    """The branches of one call, and their cached rows, joined along bb in the order of `branches`."""

    branches: tuple[Branch, ...]
    slots: Slots = field(default_factory=dict)


class KVStore:
    """The K/V cache of one run.

    Args:
        n_tokens: number of tokens of the whole image.
        format_name: the format of the cached keys and values (kv/formats.py).
        branch_nbytes: approximate bytes of one branch's cached rows on the device; 0 if unknown.

    Attributes:
        keep: function that keeps the K/V of a dense call (`plain.Keep`); None if the format keeps none.
    """

    def __init__(self, n_tokens: int, format_name: str = KVRows.format_name, branch_nbytes: int = 0):
        self.n_tokens = n_tokens
        self._branch_nbytes = branch_nbytes
        self.format_name = format_name
        self.keep = keeper(format_name)
        self._groups: dict[Branch, _Group] = {}

    def __contains__(self, branch: Branch) -> bool:
        return branch in self._groups

    @property
    def forecasts(self) -> bool:
        """Whether cached rows are extrapolated from the last evaluations that computed them."""
        return FORMATS[self.format_name].advances

    @property
    def evaluations(self) -> int:
        """For each row, the K and V of this many evaluations are kept, most recent first."""
        rows = FORMATS[self.format_name].rows
        return 1 if rows is None else rows.evaluations

    @property
    def times(self) -> type[Times]:
        """The class that tracks at which noise levels each token was evaluated; used only if `forecasts` is
        True.
        """
        return getattr(FORMATS[self.format_name].rows, "times", Times)

    def keep_for(self, branches: tuple[Branch, ...]) -> Keep | None:
        """`keep` for one call over these branches: all rows kept by it share one block of device memory."""
        if self.keep is None or FORMATS[self.format_name].in_main_memory:
            return self.keep
        return partial(self.keep, arena=Arena(self._branch_nbytes * len(branches)))

    def nbytes(self) -> int:
        groups = {id(group): group for group in self._groups.values()}
        return sum(rows.nbytes() for group in groups.values() for rows in group.slots.values())

    def drop(self, branches: tuple[Branch, ...]) -> None:
        """Drop the cached rows of these branches. Other branches that shared a call with them keep their
        rows.
        """
        for branch in branches:
            if branch in self._groups:
                self._isolate(self._groups[branch])
        for branch in branches:
            self._groups.pop(branch, None)

    def begin_fill(self, branches: tuple[Branch, ...]) -> Slots:
        """Slots for the K/V of a dense call over these branches. If the call groups the branches as the call
        before did, the slots contain the cached rows, to be overwritten. If it groups them differently, the
        cached rows are dropped, except in formats that extrapolate: these need the rows of earlier
        evaluations, so the rows are split or joined.
        """
        if self.forecasts and all(branch in self for branch in branches):
            return self.slots_for(branches)
        group = self._groups.get(branches[0])
        if group is not None and group.branches == branches:
            return group.slots
        self.drop(branches)
        return {}

    def end_fill(self, branches: tuple[Branch, ...], slots: Slots) -> None:
        """Register the slots of a completed dense call over these branches for later regional calls."""
        group = _Group(branches, slots)
        for branch in branches:
            self._groups[branch] = group

    def slots_for(self, branches: tuple[Branch, ...]) -> Slots:
        """The slots with the cached rows of these branches; rows are split or joined if an earlier call
        grouped the branches differently.
        """
        group = self._groups[branches[0]]
        if group.branches != branches:
            group = self._join(branches)
        return group.slots

    def _isolate(self, group: _Group) -> None:
        for part, branch in enumerate(group.branches):
            own = {slot: rows.chunk(part, len(group.branches)) for slot, rows in group.slots.items()}
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
