"""Regional calls as CUDA graphs: recorded once, then replayed, in one run and over runs.

Each recording has K/V buffers of its own. They are lent to the next run, whose dense steps write into them;
weights are read where they stood, so recordings are only good while these stay there.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import NotResident
from .graph_rules import MAX_GRAPHS, MAX_MISSES, MAX_TAPES, SIGHTINGS, Network, Signature, signature
from .kv import Branch
from .recording import Call, CudaTape, Recording, Slots, Tape, record
from .residency import Preset, Residency
from .side_by_side import SideBySide

logger = logging.getLogger(__name__)


@dataclass
class Buffers:
    """K/V buffers of one group of branches, and the recordings that use them, by their active count."""

    signature: Signature
    slots: Slots
    recordings: dict[int, Recording] = field(default_factory=dict)
    is_lent: bool = False

    @property
    def storage(self) -> str:
        """How their rows are kept."""
        return next(iter(self.slots.values())).storage

    @property
    def places(self) -> frozenset[int]:
        """Memory that they stand in: of calls that were grouped anew, some may be parts of others."""
        kept = (t for sequence in self.slots.values() for t in sequence.tensors)
        return frozenset(t.untyped_storage().data_ptr() for t in kept)

    def are(self, slots: Slots) -> bool:
        """Whether these are the very tensors of `slots`."""
        return self.slots.keys() == slots.keys() and all(
            own.prefix == slots[slot].prefix and all(map(operator.is_, own.tensors, slots[slot].tensors))
            for slot, own in self.slots.items()
        )


class GraphStore:
    """What a model's runs have recorded; lives beside the model, and goes when its weights do.

    Args:
        make_tape: makes a tape where one is needed, from its number.
    """

    def __init__(self, make_tape: Callable[[int], Tape] = CudaTape):
        self._make_tape = make_tape
        self._tapes: list[Tape] = []
        self._max_tapes = MAX_TAPES
        self._network: Network | None = None
        self.buffers: list[Buffers] = []
        self.trouble: str | None = None
        self.runs = 0

    def __deepcopy__(self, memo: dict) -> GraphStore:
        return GraphStore(self._make_tape)  # a copy of the model stands elsewhere

    def __reduce__(self) -> tuple:
        return (GraphStore, ())

    def tape(self, busy: Sequence[Tape] = ()) -> Tape:
        """One that is not busy, unless all are."""
        if idle := next((tape for tape in self._tapes if tape not in busy), None):
            return idle
        if len(self._tapes) < self._max_tapes:
            self._tapes.append(self._make_tape(len(self._tapes)))
        return self._tapes[-1]

    def keep_first_tape(self) -> bool:
        """Memory is too short for more than one; False where there is no other anyway."""
        has_more, self._tapes, self._max_tapes = len(self._tapes) > 1, self._tapes[:1], 1
        return has_more

    @property
    def count(self) -> int:
        return sum(len(buffers.recordings) for buffers in self.buffers)

    def nbytes(self, storage: str | None = None) -> int:
        """K/V bytes held between runs: all, or those kept in one way."""
        kind = [each for each in self.buffers if storage in (None, each.storage)]
        return sum(sequence.nbytes() for each in kind for sequence in each.slots.values())

    def stand_on(self, network: Network) -> None:
        """A run begins on these weights; recordings that read from others are dropped."""
        if self._network is None or not self._network.is_read_alike(network):
            self.clear()
            self._network = network  # whose small tensors stay alive, since recordings read them

    def has_place(self) -> bool:
        """Whether one more recording may be kept; the one that was not used for longest goes for it, unless
        this run used it.
        """
        if self.count < MAX_GRAPHS:
            return True
        kept = [(each.last_run, i, n) for i, b in enumerate(self.buffers) for n, each in b.recordings.items()]
        last_run, place, active_count = min(kept)
        if last_run == self.runs:
            return False
        buffers = self.buffers[place]
        del buffers.recordings[active_count]
        if not buffers.recordings and not buffers.is_lent:
            del self.buffers[place]
        return True

    def clear(self) -> None:
        """Give all memory back."""
        self.buffers, self._tapes, self._max_tapes = [], [], MAX_TAPES
        self._network = self.trouble = None


class GraphSession:
    """One run's dealings with the store."""

    def __init__(self, store: GraphStore, preset: Preset | None = None):
        self._store = store
        self._preset = preset
        self._weights: Residency | None = None
        store.runs += 1
        self._lent: dict[tuple[Branch, ...], Buffers] = {}
        self._seen: Counter[tuple[tuple[Branch, ...], int]] = Counter()
        self._calls = SideBySide()
        self.obstacle: str | None = None
        self.is_ready = False

    def prepare(self, network: Network) -> None:
        """Before the run's first call: do the recordings fit the weights as they stand?"""
        self.is_ready = True
        self._weights = network.residency
        self._store.stand_on(network)
        if obstacle := network.obstacle or self._store.trouble:
            self.refuse(obstacle)

    def refuse(self, reason: str) -> None:
        """No recordings in this run; said once."""
        if self.obstacle is None:
            self.obstacle = reason
            logger.info("Multirate RAS: no CUDA graphs in this run: %s.", reason)

    def lend(self, branches: tuple[Branch, ...], inputs: dict[str, Any], storage: str = "gpu") -> Slots:
        """K/V slots of an earlier run that kept its rows in this way, for a dense call to fill, so that its
        recordings fit; or none.
        """
        wanted = None if self.obstacle else signature(inputs)
        if wanted is None:
            return {}
        for held in [held for held in self._lent if set(held) <= set(branches)]:
            self._lent.pop(held).is_lent = False  # these branches have been here before
        taken = {place for each in self._store.buffers if each.is_lent for place in each.places}
        for buffers in self._store.buffers:
            if buffers.signature == wanted and buffers.storage == storage and not buffers.places & taken:
                buffers.is_lent = True
                self._lent[branches] = buffers
                self._calls.forget(buffers.recordings.values())
                for sequence in buffers.slots.values():
                    sequence.forget()
                return dict(buffers.slots)
        return {}

    def run(
        self,
        branches: tuple[Branch, ...],
        inputs: dict[str, Any],
        active_idx: Tensor,
        slots: Slots,
        call: Call,
    ) -> Tensor | None:
        """The call's output by a recording, made now where it is time; None when it has to run as ever."""
        if self.obstacle is not None or not self._weights_are_there():
            return None
        active_count = active_idx.shape[1]
        buffers = self._lent.get(branches)
        if buffers is None or not buffers.are(slots):
            buffers = None
        recording = buffers.recordings.get(active_count) if buffers else None
        if recording is None:
            self._seen[branches, active_count] += 1
            if self._seen[branches, active_count] < SIGHTINGS or not self._store.has_place():
                return None
            return self._record(branches, buffers, inputs, active_idx, slots, call)
        if not recording.fits(inputs):
            return None
        recording.last_run = self._store.runs
        with torch.inference_mode(), self._weights_held() as whole:
            return self._calls.run(recording, inputs, active_idx) if whole else None

    def _weights_are_there(self) -> bool:
        """Whether weights that may be evicted are all in place, as far as the last look tells."""
        weights = self._weights
        if weights is None or weights.is_proved:
            return True
        if weights.misses > MAX_MISSES:
            self.refuse("the device's memory is too short to keep all weights there")
            return False
        if not weights.prove():
            weights.misses += 1
            return False
        if obstacle := weights.obstacle:
            self.refuse(obstacle)
        return self.obstacle is None

    def _weights_held(self) -> AbstractContextManager[bool]:
        return nullcontext(True) if self._weights is None else self._weights.held()

    def _weights_captured(self) -> AbstractContextManager[None]:
        if self._weights is None or self._preset is None:
            return nullcontext()
        return self._weights.captured(self._preset)

    def begin_evaluation(self, calls_are_plain: bool) -> str | None:
        """Another guided evaluation starts; `calls_are_plain`: the host makes its calls one after the other,
        on the same weights. Returns what went wrong in an earlier one, or None.
        """
        return self._calls.begin_evaluation(calls_are_plain)

    def settle(self) -> None:
        """K/V buffers and outputs may be read and written: the device will have done what was begun early."""
        self._calls.settle()

    def end(self) -> str | None:
        """The last evaluation is over; returns what went wrong, or None."""
        return self._calls.end()

    def close(self) -> None:
        """The run is over: all goes back, also buffers of calls that were grouped anew on the way."""
        self._calls.forget()
        self._store.buffers = [each for each in self._store.buffers if each.recordings]
        for buffers in self._store.buffers:
            buffers.is_lent = False
        self._lent.clear()

    def keep_only(self, storage: str) -> None:
        """Memory is short: buffers kept in another way than this run's go."""
        self._store.buffers = [each for each in self._store.buffers if each.storage == storage]

    def drop(self) -> None:
        """Memory is short: everything goes."""
        self.close()
        self._store.clear()
        self.obstacle = self.obstacle or "there is not enough memory"

    def _record(
        self,
        branches: tuple[Branch, ...],
        buffers: Buffers | None,
        inputs: dict[str, Any],
        active_idx: Tensor,
        slots: Slots,
        call: Call,
    ) -> Tensor | None:
        key = signature(inputs)
        if key is None:
            self.refuse("the network gets inputs of an unknown kind")
            return None
        buffers = buffers or Buffers(key, dict(slots), is_lent=True)
        try:
            with torch.inference_mode():
                recording = self._recorded(inputs, active_idx, buffers.slots, call)
        except NotResident:
            return None
        except Exception as error:  # whatever a driver, a library or another pack may raise
            self._give_up(error)
            return None
        if not buffers.are(slots):
            self.refuse("the K/V buffers changed while they were recorded")
            return None
        recording.last_run = self._store.runs
        buffers.recordings[active_idx.shape[1]] = recording
        self._calls.add(recording)
        known = self._lent.get(branches)
        if known is not buffers:  # these branches' rows stand elsewhere now
            self._store.buffers = [each for each in self._store.buffers if each is not known] + [buffers]
            self._lent[branches] = buffers
        return recording.output

    def _recorded(self, inputs: dict[str, Any], active_idx: Tensor, slots: Slots, call: Call) -> Recording:
        try:
            return record(
                self._store.tape(self._calls.busy), inputs, active_idx, slots, call, self._weights_captured
            )
        except torch.cuda.OutOfMemoryError:
            if not self._store.keep_first_tape():
                raise
        return record(self._store.tape(), inputs, active_idx, slots, call, self._weights_captured)

    def _give_up(self, error: Exception) -> None:
        self.refuse(f"recording failed ({type(error).__name__}: {str(error)[:200]})")
        self.close()
        self._store.buffers = []
        self._store.trouble = self.obstacle  # until the weights move: each try costs time
