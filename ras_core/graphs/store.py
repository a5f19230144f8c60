"""What a model keeps between runs: captured calls, and the K/V buffers that they read.

The branches that ComfyUI evaluates in one call form a group. Each group of branches has its own K/V buffers,
which all graphs for this group read and write. A later run borrows these buffers, and its dense steps fill
them.

A tape (`tape`) captures calls as CUDA graphs. All graphs of one tape share working memory, so only graphs of
different tapes can run in parallel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from .capture import Attempt, CapturedCall, RegionalCall, Slots, capture
from .eligibility import MAX_GRAPHS, MAX_TAPES, Form, Signature
from .network_identity import Network
from .tape import Around, CudaTape, Tape


@dataclass
class Buffers:
    """K/V buffers of one group of branches, and the captured calls that use them.

    Attributes:
        signature: `eligibility.signature` of the dense calls that fill the buffers.
        slots: the buffers, i.e. the cached K/V rows of each attention.
        calls: captured calls, by form.
        is_lent: whether a run uses the buffers.
    """

    signature: Signature
    slots: Slots
    calls: dict[Form, CapturedCall] = field(default_factory=dict)
    is_lent: bool = False

    @property
    def format_name(self) -> str:
        """Name of the K/V format of the buffers (kv/formats.py)."""
        return next(iter(self.slots.values())).format_name

    @property
    def addresses(self) -> frozenset[int]:
        """Addresses of the allocations that hold the buffers. If ComfyUI regroups the branches during a run,
        the buffers of the new group may be parts of the old group's allocations. So the buffers of two groups
        may share memory, and then only one of the two groups may be lent (`leases`).
        """
        kept = (t for sequence in self.slots.values() for t in sequence.tensors)
        return frozenset(t.untyped_storage().data_ptr() for t in kept)

    def match(self, slots: Slots) -> bool:
        """Whether `slots` consists of the same tensor objects as these buffers."""
        return self.slots.keys() == slots.keys() and all(
            own.prefix == slots[slot].prefix and all(map(operator.is_, own.tensors, slots[slot].tensors))
            for slot, own in self.slots.items()
        )


class GraphStore:
    """The captured calls of one model. The store is an attribute of the model, and is cleared when the model
    is unloaded.

    Args:
        make_tape: function that creates a tape, given the number of the tape.

    Attributes:
        buffers: all K/V buffers with their captured calls.
        capture_failure: why captures failed for this network; None if none did.
        runs: how many runs have used the store.
    """

    def __init__(self, make_tape: Callable[[int], Tape] = CudaTape):
        self._make_tape = make_tape
        self._tapes: list[Tape] = []
        self._max_tapes = MAX_TAPES
        self._network: Network | None = None
        self._idle: dict[int, object] = {}  # layers of the network that do not run in a step (`step_layers`)
        self.buffers: list[Buffers] = []
        self.capture_failure: str | None = None
        self.runs = 0

    def __deepcopy__(self, memo: dict) -> GraphStore:
        return GraphStore(self._make_tape)  # empty: the copied model has its weights at other addresses

    def __reduce__(self) -> tuple:
        return (GraphStore, ())

    @property
    def count(self) -> int:
        """Number of captured calls."""
        return sum(len(buffers.calls) for buffers in self.buffers)

    def nbytes(self, format_name: str | None = None) -> int:
        """Bytes of the K/V buffers in this store: of all formats, or of one."""
        kept = [each for each in self.buffers if format_name in (None, each.format_name)]
        return sum(sequence.nbytes() for each in kept for sequence in each.slots.values())

    def start_on(self, network: Network) -> None:
        """Start a run on this network: drop graphs that were captured when the network had other weights or
        other Python code (`network_identity`).
        """
        if self._network is None or not self._network.matches(network):
            self.clear()
            self._network = network.to_keep
        if network.residency is not None:
            network.residency.share_idle(self._idle)

    def make_room(self) -> bool:
        """Make room for one more graph: if the store is full, free the least recently used graph. Returns
        False if there is no room, because this run has used all graphs in the store.
        """
        if self.count < MAX_GRAPHS:
            return True
        kept = [(c.last_run, i, form) for i, b in enumerate(self.buffers) for form, c in b.calls.items()]
        last_run, i, form = min(kept, key=operator.itemgetter(0, 1))
        if last_run == self.runs:
            return False
        buffers = self.buffers[i]
        del buffers.calls[form]
        if not buffers.calls and not buffers.is_lent:
            del self.buffers[i]
        return True

    def capture(
        self, call: RegionalCall, attempt: Attempt, busy: Collection[Tape], around: Around
    ) -> CapturedCall | None:
        """Capture a call. `busy` has the tapes of the evaluation's other calls; the call is captured on
        another tape, so that it can run in parallel with them, or on the first tape if memory is too short
        for two tapes.

        Returns:
            The captured call. None if memory was short and the call has already stored its cached K/V rows as
            those of the previous evaluation (`CapturedCall.advances`). This must happen only once, so the
            capture must wait until ComfyUI makes this call again.
        """
        try:
            return capture(self._tape(busy), call, attempt, around)
        except torch.cuda.OutOfMemoryError:
            if not self._keep_first_tape():
                raise
        if attempt.has_advanced:
            return None
        return capture(self._tape(), call, attempt, around)

    def clear(self) -> None:
        """Free all graphs, K/V buffers and tapes."""
        self.buffers, self._tapes, self._max_tapes = [], [], MAX_TAPES
        self._network = self.capture_failure = None
        self._idle = {}

    def _tape(self, busy: Collection[Tape] = ()) -> Tape:
        """A tape that is not in `busy`. If all are, one is created, unless the store already has
        `_max_tapes`; then the last tape is returned, although it is busy.
        """
        if idle := next((tape for tape in self._tapes if tape not in busy), None):
            return idle
        if len(self._tapes) < self._max_tapes:
            self._tapes.append(self._make_tape(len(self._tapes)))
        return self._tapes[-1]

    def _keep_first_tape(self) -> bool:
        """Free all tapes but the first, because memory is short. Returns False if there was only one."""
        has_more, self._tapes, self._max_tapes = len(self._tapes) > 1, self._tapes[:1], 1
        return has_more


@dataclass(frozen=True)
class GraphEnvironment:
    """What this package needs to know about ComfyUI; supplied by ras_core/host.

    Attributes:
        store_of: returns the store of a model's captured calls; None if the model cannot have one.
        interrupts: exceptions that ComfyUI raises when the user cancels a run.
        obstacle: returns why nothing can be captured now, or None; called before each capture.
    """

    store_of: Callable[[Any], GraphStore | None]
    interrupts: tuple[type[BaseException], ...] = ()
    obstacle: Callable[[], str | None] = lambda: None
