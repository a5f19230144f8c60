"""Regional calls as CUDA graphs: recorded once, then replayed, in one run and over runs.

A regional step is bound by the launches of its many small kernels; a graph launches them all at once. It
reads and writes fixed places, so each recording has inputs, an output and K/V buffers of its own. The buffers
are lent to the next run, whose dense steps write into them; weights are read where they stood, so recordings
are only good while these stay there.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .graph_rules import MAX_GRAPHS, SIGHTINGS, Network, Signature, signature
from .kv import Branch, Sequence, Slot

logger = logging.getLogger(__name__)

Slots = dict[Slot, Sequence]
Work = Callable[[], None]
Call = Callable[[dict[str, Any], Tensor, Slots], Tensor]
"""The call itself: named inputs, active tokens (bb, n_active) and K/V slots -> output (bb, c, H, W)."""


class Tape(Protocol):
    """What records work and replays it."""

    def record(self, work: Work) -> Work:
        """Do `work` once, and return what repeats it."""


class CudaTape:
    """torch.cuda's graphs. All recordings share one pool: none leaves a tensor of its own in it."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()  # libraries set up their workspaces for this stream
            # "thread_local": ComfyUI's server thread may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        torch.cuda.empty_cache()  # what the first `work` took on that stream
        return graph.replay


@dataclass
class Recording:
    """One recorded call: its places, and what fills the output from them."""

    inputs: dict[str, Any]
    active_idx: Tensor
    output: Tensor
    replay: Work
    away: dict[str, Tensor] = field(default_factory=dict)
    """What the places hold of inputs that live elsewhere, for a comparison where these live."""

    def run(self, inputs: dict[str, Any], active_idx: Tensor) -> Tensor:
        """The output place, (bb, c, H, W): good until the next run of this recording."""
        for name, place in self.inputs.items():
            if isinstance(place, Tensor):
                self._put(name, place, inputs[name])
        self.active_idx.copy_(active_idx)
        self.replay()
        return self.output

    def _put(self, name: str, place: Tensor, value: Tensor) -> None:
        known = self.away.get(name)
        if known is not None and torch.equal(known, value):
            return  # the host keeps conditionings on the CPU; sending one waits for the device
        if known is not None:
            self.away[name] = value.clone()
        place.copy_(value)


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

    def are(self, slots: Slots) -> bool:
        """Whether these are the very tensors of `slots`."""
        return self.slots.keys() == slots.keys() and all(
            own.prefix == slots[slot].prefix and all(map(operator.is_, own.tensors, slots[slot].tensors))
            for slot, own in self.slots.items()
        )


class GraphStore:
    """What a model's runs have recorded; lives beside the model, and goes when its weights do.

    Args:
        make_tape: makes the tape at the first recording.
    """

    def __init__(self, make_tape: Callable[[], Tape] = CudaTape):
        self._make_tape = make_tape
        self._tape: Tape | None = None
        self._network: Network | None = None
        self.buffers: list[Buffers] = []
        self.trouble: str | None = None

    def __deepcopy__(self, memo: dict) -> GraphStore:
        return GraphStore(self._make_tape)  # a copy of the model stands elsewhere

    def __reduce__(self) -> tuple:
        return (GraphStore, ())

    @property
    def tape(self) -> Tape:
        if self._tape is None:
            self._tape = self._make_tape()
        return self._tape

    @property
    def count(self) -> int:
        return sum(len(buffers.recordings) for buffers in self.buffers)

    def nbytes(self, storage: str | None = None) -> int:
        """K/V bytes held between runs: all, or those kept in one way."""
        kind = [each for each in self.buffers if storage in (None, each.storage)]
        return sum(sequence.nbytes() for each in kind for sequence in each.slots.values())

    def stand_on(self, network: Network) -> None:
        """A run begins on these weights; recordings that read from others are dropped."""
        known = self._network
        if known is None or known.addresses != network.addresses or known.sampling is not network.sampling:
            self.clear()
            self._network = network

    def clear(self) -> None:
        """Give all memory back."""
        self.buffers = []
        self._tape = self._network = self.trouble = None


class GraphSession:
    """One run's dealings with the store."""

    def __init__(self, store: GraphStore):
        self._store = store
        self._lent: dict[tuple[Branch, ...], Buffers] = {}
        self._seen: Counter[tuple[tuple[Branch, ...], int]] = Counter()
        self.replays = 0
        self.obstacle: str | None = None
        self.is_ready = False

    def prepare(self, network: Network) -> None:
        """Before the run's first call: do the recordings fit the weights as they stand?"""
        self.is_ready = True
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
        for buffers in self._store.buffers:
            fits = buffers.signature == wanted and buffers.storage == storage
            if wanted is not None and not buffers.is_lent and fits:
                buffers.is_lent = True
                self._lent[branches] = buffers
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
        if self.obstacle is not None:
            return None
        active_count = active_idx.shape[1]
        buffers = self._lent.get(branches)
        if buffers is None or not buffers.are(slots):
            buffers = None
        recording = buffers.recordings.get(active_count) if buffers else None
        if recording is None:
            self._seen[branches, active_count] += 1
            if self._seen[branches, active_count] < SIGHTINGS or self._store.count >= MAX_GRAPHS:
                return None
            return self._record(branches, buffers, inputs, active_idx, slots, call)
        with torch.inference_mode():
            output = recording.run(inputs, active_idx)
        self.replays += 1
        return output

    def close(self) -> None:
        """The run is over: all goes back, also buffers of calls that were grouped anew on the way."""
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
                recording = record(self._store.tape, inputs, active_idx, buffers.slots, call)
        except Exception as error:  # whatever a driver, a library or another pack may raise
            self._give_up(error)
            return None
        if not buffers.are(slots):
            self.refuse("the K/V buffers changed while they were recorded")
            return None
        buffers.recordings[active_idx.shape[1]] = recording
        if branches not in self._lent or self._lent[branches] is not buffers:
            self._lent[branches] = buffers
            self._store.buffers.append(buffers)
        return recording.output

    def _give_up(self, error: Exception) -> None:
        self.refuse(f"recording failed ({type(error).__name__}: {str(error)[:200]})")
        self.close()
        self._store.buffers = []
        self._store.trouble = self.obstacle  # until the weights move: each try costs time


def record(tape: Tape, inputs: dict[str, Any], active_idx: Tensor, slots: Slots, call: Call) -> Recording:
    """Record `call` on places of its own; afterwards the output place holds this call's output.

    All places are on the device of the picture `x`, where the recorded call would otherwise have to bring
    conditionings from the CPU: no recording can hold that.
    """
    device = inputs["x"].device
    tensors = {name: each for name, each in inputs.items() if isinstance(each, Tensor)}
    places = inputs | {name: each.to(device, copy=True) for name, each in tensors.items()}
    away = {name: each.clone() for name, each in tensors.items() if each.device != device}
    index = active_idx.clone()
    output = torch.empty_like(inputs["x"], dtype=torch.float32, memory_format=torch.contiguous_format)

    def work() -> None:
        output.copy_(call(places, index, slots))

    return Recording(places, index, output, tape.record(work), away)
