"""A call recorded once and replayed on fixed places.

A regional step is bound by the launches of its many small kernels; a CUDA graph launches them all at once. It
reads and writes fixed places, so each recording has inputs and an output of its own, beside K/V buffers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kv.plain import Slots
from .eligibility import MAX_TAPES

Work = Callable[[], None]
Around = Callable[[], AbstractContextManager[None]]
"""Gives the context manager that a capture runs inside."""
Call = Callable[[dict[str, Any], Tensor, Slots], Tensor]
"""The call itself: named inputs, active tokens (bb, n_active) and K/V slots -> output (bb, c, H, W)."""


class Tape(Protocol):
    """What records work and replays it. Recordings of one tape must not run at the same time: they share the
    memory that they work in.
    """

    def record(self, work: Work, around: Around = nullcontext) -> Work:
        """Do `work` once, capture it inside `around`, and return a function that replays it."""

    def begin(self, replay: Work) -> Work:
        """Launch the replay in parallel with what is enqueued next. Returns a function that makes the current
        stream wait for it.
        """


class CudaTape:
    """torch.cuda's graphs, with a memory pool of their own, in which no recording leaves a tensor.

    Args:
        number: which of a model's tapes, from 0: those with another number have another stream.
    """

    def __init__(self, number: int) -> None:
        self._stream = _streams(torch.cuda.current_device())[number]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work, around: Around = nullcontext) -> Work:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        torch.cuda.empty_cache()  # what is kept for other streams is of no use to this one
        try:
            with torch.cuda.stream(self._stream):
                return self._capture(work, around)
        finally:
            current.wait_stream(self._stream)

    def _capture(self, work: Work, around: Around) -> Work:
        work()  # libraries set up their workspaces for this stream
        torch.cuda.empty_cache()  # what that took, which the pool cannot use either
        with around():
            torch.cuda.synchronize()
            return self._captured(work)

    def _captured(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": ComfyUI's server thread may use the device meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        failure = None
        try:
            work()
        except BaseException as error:
            failure = kept_forever(error) if is_broken_by(error) else without_frames(error)
        try:
            graph.capture_end()
        except BaseException as error:
            self._leave_pool()
            failure = failure or error
        if failure is not None:
            raise failure
        return graph.replay

    def _leave_pool(self) -> None:
        """A capture that failed to end may have left the allocator still allocating to its pool."""
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)

    def begin(self, replay: Work) -> Work:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            replay()
        return lambda: torch.cuda.current_stream().wait_stream(self._stream)


def without_frames(error: BaseException) -> BaseException:
    """The same error, with nothing of where it came from: frames hold tensors, and those that were made in a
    capture have to go before it ends. With cudaMallocAsync the process would end with them.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


def is_broken_by(error: BaseException) -> bool:
    """Whether this is a driver error, which has invalidated the capture."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA" in str(error)


def kept_forever(error: BaseException) -> BaseException:
    """The same error, with its frames kept alive for good. Tensors made in a broken capture have an address
    but no memory; freeing them would raise an error that terminates the process.
    """
    each: BaseException | None = error
    while each is not None:
        if each.__traceback__ is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each.__traceback__))
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


@cache
def _streams(device: int) -> tuple[torch.cuda.Stream, ...]:
    """One for each number, the same for all models: libraries give each stream that they see a workspace, and
    keep it for good. Made at once, since PyTorch hands out some 32 in turns.
    """
    return tuple(torch.cuda.Stream(device) for _ in range(MAX_TAPES))


@dataclass(eq=False)
class Recording:
    """One recorded call: its places, and what fills the output from them."""

    inputs: dict[str, Any]
    active_idx: Tensor
    output: Tensor
    replay: Work
    tape: Tape
    away: dict[str, Tensor] = field(default_factory=dict)
    """What the places hold of inputs that live elsewhere, for a comparison where these live. A run brings its
    conditionings to the device (host/conditionings.py), but other packs' guiders may not let it.
    """
    last_run: int = 0
    """Number of the run that used it last."""
    advances: bool = False
    """Whether K/V rows depend on the last evaluation, so that running the call twice advances them twice."""

    def fits(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a call with these inputs can be this one: tensors may have changed, nothing else."""
        return self.inputs.keys() == inputs.keys() and all(
            _is_alike(self.away.get(name, place), inputs[name]) for name, place in self.inputs.items()
        )

    def run(self, inputs: Mapping[str, Any], active_idx: Tensor) -> Tensor:
        """The output place, (bb, c, H, W): good until the next run of this recording."""
        self.put(inputs, active_idx)
        self.replay()
        return self.output

    def begin(self, inputs: Mapping[str, Any], active_idx: Tensor) -> Work:
        """The same beside what the device does next, all other inputs as they were; returns what has it wait
        until the output is there.
        """
        self.put(inputs, active_idx)
        return self.tape.begin(self.replay)

    def put(self, inputs: Mapping[str, Any], active_idx: Tensor) -> None:
        """Inputs, all or some, into their places."""
        for name, place in self.inputs.items():
            if isinstance(place, Tensor) and name in inputs:
                self._put(name, place, inputs[name])
        self.active_idx.copy_(active_idx)

    def _put(self, name: str, place: Tensor, value: Tensor) -> None:
        known = self.away.get(name)
        if known is not None and torch.equal(known, value):
            return  # sending one waits for the device
        if known is not None:
            self.away[name] = value.clone()
        place.copy_(value)


@dataclass
class Attempt:
    """How far a call got that was to be captured; it runs once before the capture.

    Attributes:
        moves_rows: whether running it advances K/V rows, so that running it twice differs from once.
        is_begun: whether it has started.
        output: its output, (bb, c, H, W), once it has completed.
    """

    moves_rows: bool = False
    is_begun: bool = False
    output: Tensor | None = None

    @property
    def has_advanced(self) -> bool:
        """Whether K/V rows may have been advanced."""
        return self.moves_rows and self.is_begun


def record(
    tape: Tape,
    inputs: dict[str, Any],
    active_idx: Tensor,
    slots: Slots,
    call: Call,
    attempt: Attempt | None = None,
    around: Around = nullcontext,
) -> Recording:
    """Capture `call` on input and output buffers of its own; afterwards the output buffer holds this call's
    output. `attempt` tracks how far the call got, even if it fails; the capture itself runs inside `around`.

    All buffers are on the device of the image `x`. Conditionings on the CPU are copied there first, since a
    graph cannot capture that copy.
    """
    device = inputs["x"].device
    tensors = {name: each for name, each in inputs.items() if isinstance(each, Tensor)}
    places = inputs | {name: each.to(device, copy=True) for name, each in tensors.items()}
    away = {name: each.clone() for name, each in tensors.items() if each.device != device}
    index = active_idx.clone()
    output = torch.empty_like(inputs["x"], dtype=torch.float32, memory_format=torch.contiguous_format)

    attempt = attempt or Attempt()

    def work() -> None:
        attempt.is_begun = True
        output.copy_(call(places, index, slots))
        attempt.output = output

    replay = tape.record(work, around)
    return Recording(places, index, output, replay, tape, away, advances=attempt.moves_rows)


def _is_alike(known: Any, value: Any) -> bool:
    if isinstance(known, Tensor) and isinstance(value, Tensor):
        form = (known.shape, known.dtype, known.device)
        return form == (value.shape, value.dtype, value.device)
    return not isinstance(known, Tensor) and not isinstance(value, Tensor) and known == value
