"""Regional calls as CUDA graphs: captured once, then replayed, within a run and across runs.

Each graph has K/V buffers of its own. They are lent to the next run, whose dense steps write into them.
Weights are read at the addresses they had during capture, so graphs are valid only while weights stay there.
The graphs of a network's runs are kept in a store beside it; a run may call several networks (a guider with
two models), and has a part for each.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import NotResident, RegionalAbort
from ..kv.formats import FORMATS
from ..kv.store import Branch
from .capture import Attempt, Call, CudaTape, Recording, Slots, Tape, record
from .eligibility import (
    MAX_GRAPHS,
    MAX_TAPES,
    SIGHTINGS,
    Form,
    GraphReport,
    Signature,
    form_of,
    signature,
    without_residuals,
)
from .network_identity import Network
from .overlap import SideBySide
from .residency import Residency

logger = logging.getLogger(__name__)

NO_MEMORY = "there is not enough memory"


@dataclass
class Buffers:
    """K/V buffers of one group of branches, and the graphs that use them, by form."""

    signature: Signature
    slots: Slots
    recordings: dict[Form, Recording] = field(default_factory=dict)
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
        """A run starts on this network; drop graphs that were captured on a different one."""
        if self._network is None or not self._network.matches(network):
            self.clear()
            self._network = network.to_keep

    def has_place(self) -> bool:
        """Whether one more graph may be kept; evicts the least recently used, unless this run used it."""
        if self.count < MAX_GRAPHS:
            return True
        kept = [(each.last_run, i, n) for i, b in enumerate(self.buffers) for n, each in b.recordings.items()]
        last_run, place, form = min(kept, key=operator.itemgetter(0, 1))
        if last_run == self.runs:
            return False
        buffers = self.buffers[place]
        del buffers.recordings[form]
        if not buffers.recordings and not buffers.is_lent:
            del self.buffers[place]
        return True

    def clear(self) -> None:
        """Give all memory back."""
        self.buffers, self._tapes, self._max_tapes = [], [], MAX_TAPES
        self._network = self.trouble = None


class RowsAdvanced(RegionalAbort):
    """A call that did not complete has advanced its K/V rows: it must not be run again on these."""


@dataclass(frozen=True)
class HostSide:
    """What graphs need to know of ComfyUI.

    Attributes:
        store_of: gives the store of a model's graphs; None if it cannot have any.
        interrupts: exceptions that ComfyUI raises when the user cancels a run.
        obstacle: says why nothing can be captured right now, or None.
    """

    store_of: Callable[[Any], GraphStore | None]
    interrupts: tuple[type[BaseException], ...] = ()
    obstacle: Callable[[], str | None] = lambda: None


class GraphSession:
    """The CUDA graphs of one run: a part for each network that it calls."""

    def __init__(self, host: HostSide):
        self._host = host
        self._parts: dict[Any, NetworkGraphs | None] = {}
        self._refused: str | None = None
        self._said: set[str] = set()
        self._asked = self._evaluations = 0
        self._replayed_before = 0

    def of(self, model: Any) -> NetworkGraphs | None:
        """The part of one of ComfyUI's models; None if it gets no graphs in this run."""
        if model not in self._parts:
            store = self._host.store_of(model)
            part = None if store is None else NetworkGraphs(store, self._host, model, self._said)
            if part is not None and self._refused is not None:
                part.refuse(self._refused)
            self._parts[model] = part
        return self._parts[model]

    @property
    def parts(self) -> list[NetworkGraphs]:
        return [part for part in self._parts.values() if part is not None]

    @property
    def report(self) -> GraphReport:
        """What was captured and replayed so far."""
        reasons = [part.obstacle for part in self.parts if part.obstacle is not None]
        captured = sum(part.captured for part in self.parts)
        return GraphReport(captured, self._evaluations + self._is_replayed, next(iter(reasons), None))

    def begin_evaluation(self, calls_are_plain: bool) -> str | None:
        """The next guided evaluation starts; `calls_are_plain`: ComfyUI makes its calls one after the other,
        on the same weights. Returns what went wrong in an earlier evaluation, or None.
        """
        self._evaluations += self._is_replayed
        self._asked, self._replayed_before = 0, self._replayed
        return _first(part.begin_evaluation(calls_are_plain) for part in self.parts)

    def begin_call(self, model: Any) -> None:
        """ComfyUI calls a network. The device first waits for replays that were launched early, so that K/V
        buffers and outputs may be read and written.
        """
        self._asked += 1
        for part in self.parts:
            part.settle()
        if (part := self._parts.get(model)) is not None:
            part.begin_call()

    def end(self) -> str | None:
        """The last evaluation is over; returns what went wrong, or None."""
        return _first(part.end() for part in self.parts)

    def refuse(self, reason: str) -> None:
        """Use no graphs in this run."""
        self._refused = self._refused or reason
        for part in self.parts:
            part.refuse(reason)

    def close(self) -> None:
        """The run is over."""
        for part in self.parts:
            part.close()

    def keep_only(self, storage: str) -> None:
        """Memory is short: free buffers whose storage differs from this run's."""
        for part in self.parts:
            part.keep_only(storage)

    def drop(self) -> None:
        """Memory is short: free everything."""
        self._refused = self._refused or NO_MEMORY
        for part in self.parts:
            part.drop()

    @property
    def _replayed(self) -> int:
        return sum(part.replayed for part in self.parts)

    @property
    def _is_replayed(self) -> bool:
        """Whether all calls of this evaluation were replayed."""
        return 0 < self._asked == self._replayed - self._replayed_before


class NetworkGraphs:
    """One network's CUDA graphs during one run, kept in the network's store.

    Attributes:
        model: ComfyUI's model that contains the network.
        network: its description at the run's first call; None before.
        obstacle: why nothing is captured or replayed (any more); None if nothing prevents it.
        captured, replayed: numbers of calls.
    """

    def __init__(
        self,
        store: GraphStore,
        host: HostSide | None = None,
        model: Any = None,
        said: set[str] | None = None,
    ):
        self._store = store
        self._said = set() if said is None else said  # reasons logged by this run, for any network
        store.runs += 1
        self._host = host or HostSide(lambda model: store)
        self._lent: dict[tuple[Branch, ...], Buffers] = {}
        self._seen: Counter[tuple[tuple[Branch, ...], Form]] = Counter()
        self._calls = SideBySide()
        self.model = model
        self.network: Network | None = None
        self.obstacle: str | None = None
        self.captured = self.replayed = 0

    @property
    def is_ready(self) -> bool:
        """Whether this run has inspected the network."""
        return self.network is not None

    @property
    def device(self) -> torch.device | None:
        """Where the network runs, once that is known."""
        return self.network and self.network.device

    def prepare(self, network: Network) -> None:
        """Before the run's first call of the network: drop graphs that do not fit its present state."""
        self.network = network
        self._store.stand_on(network)
        if obstacle := network.obstacle or self._store.trouble:
            self.refuse(obstacle)

    def refuse(self, reason: str) -> None:
        """Use no graphs of this network in this run; log the reason once."""
        if self.obstacle is None:
            self.obstacle = reason
            if reason not in self._said:
                logger.info("Multirate RAS: no CUDA graphs in this run: %s.", reason)
            self._said.add(reason)

    def lend(self, branches: tuple[Branch, ...], inputs: dict[str, Any], storage: str = "gpu") -> Slots:
        """K/V slots of an earlier run with the same storage, for a dense call to fill, so that the run's
        graphs can be replayed; empty if there are none.
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
        options: Hashable = (),
    ) -> Tensor | None:
        """Replay the call, capturing it first if due. Returns its output, or None if it must run eagerly.

        Raises:
            RowsAdvanced: the call's K/V rows have been advanced: it has to run again without any.
        """
        if self.obstacle is not None or not self._weights_are_resident():
            return None
        form = form_of(active_idx.shape[1], inputs, options)
        buffers = self._lent.get(branches)
        if buffers is None or not buffers.are(slots):
            buffers = None
        recording = buffers.recordings.get(form) if buffers else None
        if recording is None:
            self._seen[branches, form] += 1
            if self._seen[branches, form] < SIGHTINGS or not self._store.has_place():
                return None
            return self._record(branches, buffers, inputs, active_idx, slots, call, form)
        if not recording.fits(inputs):
            return None
        recording.last_run = self._store.runs
        with torch.inference_mode(), self._weights_held() as whole:
            if not whole:
                return None
            output = self._calls.run(recording, inputs, active_idx, len(branches))
        self.replayed += 1
        return output

    @property
    def _weights(self) -> Residency | None:
        """The network's evictable weights."""
        return self.network and self.network.residency

    def _weights_are_resident(self) -> bool:
        """Whether all evictable weights are resident, as far as the last check tells."""
        weights = self._weights
        if weights is None or weights.is_proved:
            return True
        if not weights.look():
            if weights.is_hopeless:
                self.refuse("there is too little GPU memory to keep all weights resident")
            return False
        if obstacle := weights.obstacle:
            self.refuse(obstacle)
        return obstacle is None

    def _weights_held(self) -> AbstractContextManager[bool]:
        return nullcontext(True) if self._weights is None else self._weights.held()

    def _weights_captured(self) -> AbstractContextManager[None]:
        return nullcontext() if self._weights is None else self._weights.captured()

    def begin_evaluation(self, calls_are_plain: bool) -> str | None:
        """As `GraphSession.begin_evaluation`."""
        return self._calls.begin_evaluation(calls_are_plain)

    def begin_call(self) -> None:
        """ComfyUI calls this network."""
        self._calls.begin_call()

    def settle(self) -> None:
        """Have the device wait for replays that were launched early."""
        self._calls.settle()

    def has_advanced(self, branches: tuple[Branch, ...]) -> bool:
        """Whether a call that was launched early, and then not requested in that form, has advanced K/V rows
        of these branches.
        """
        return any(
            set(branches) & set(held) and self._calls.has_advanced(buffers.recordings.values())
            for held, buffers in self._lent.items()
        )

    def end(self) -> str | None:
        """The last evaluation is over; returns what went wrong, or None."""
        return self._calls.end()

    def close(self) -> None:
        """The run is over: take back all buffers, also those of calls that were regrouped during the run."""
        self._calls.forget()
        self._store.buffers = [each for each in self._store.buffers if each.recordings]
        for buffers in self._store.buffers:
            buffers.is_lent = False
        self._lent.clear()

    def keep_only(self, storage: str) -> None:
        """Memory is short: free buffers whose storage differs from this run's."""
        self._store.buffers = [each for each in self._store.buffers if each.storage == storage]

    def drop(self) -> None:
        """Memory is short: free everything."""
        self.close()
        self._store.clear()
        self.obstacle = self.obstacle or NO_MEMORY

    def _record(
        self,
        branches: tuple[Branch, ...],
        buffers: Buffers | None,
        inputs: dict[str, Any],
        active_idx: Tensor,
        slots: Slots,
        call: Call,
        form: Form,
    ) -> Tensor | None:
        unknown = "the network gets inputs of an unknown type"
        obstacle = unknown if signature(inputs) is None else self._host.obstacle()
        if obstacle is not None:
            self.refuse(obstacle)
            return None
        buffers = buffers or Buffers(signature(without_residuals(inputs)), dict(slots), is_lent=True)
        attempt = Attempt(FORMATS[buffers.storage].advances)
        try:
            with torch.inference_mode():
                recording = self._recorded(inputs, active_idx, buffers.slots, call, attempt)
        except self._host.interrupts:
            raise
        except NotResident:
            recording = None
        except Exception as error:  # anything a driver, a library or another pack may raise
            self._give_up(error)
            recording = None
        if recording is not None and not buffers.are(slots):
            self.refuse("the K/V buffers were replaced during the capture")
            recording = None
        if recording is None:
            return self._output_of(attempt, buffers.slots, slots)
        self.captured += 1
        recording.last_run = self._store.runs
        buffers.recordings[form] = recording
        self._calls.add(recording, len(branches))
        known = self._lent.get(branches)
        if known is not buffers:  # these branches' rows are in other buffers now
            self._store.buffers = [each for each in self._store.buffers if each is not known] + [buffers]
            self._lent[branches] = buffers
        return recording.output

    def _recorded(
        self, inputs: dict[str, Any], active_idx: Tensor, slots: Slots, call: Call, attempt: Attempt
    ) -> Recording | None:
        """Capture the call; None if that has to wait until the call comes again."""
        try:
            return record(
                self._store.tape(self._calls.busy), inputs, active_idx, slots, call, attempt,
                self._weights_captured,
            )  # fmt: skip
        except torch.cuda.OutOfMemoryError:
            if not self._store.keep_first_tape():
                raise
        if attempt.has_advanced:
            return None
        return record(self._store.tape(), inputs, active_idx, slots, call, attempt, self._weights_captured)

    def _output_of(self, attempt: Attempt, left: Slots, slots: Slots) -> Tensor | None:
        """The output of a call that could not be captured, if it completed; its K/V go to `slots` then."""
        if attempt.output is None and attempt.has_advanced:
            raise RowsAdvanced("a call failed halfway while it was being captured")
        if attempt.output is not None:
            slots.update(left)
        return attempt.output

    def _give_up(self, error: Exception) -> None:
        self.refuse(f"capture failed ({type(error).__name__}: {str(error)[:200]})")
        self.close()
        self._store.buffers = []
        self._store.trouble = self.obstacle  # until the weights move: each attempt costs time


def _first(found: Iterable[str | None]) -> str | None:
    """The first that is not None; evaluates all."""
    return next(filter(None, list(found)), None)
