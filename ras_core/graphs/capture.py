"""One regional call of the network, captured with its own input and output buffers.

A regional step spends most of its time launching many small kernels; a CUDA graph launches them all at once.
A graph reads and writes fixed addresses, so every captured call has its own input and output buffers. The K/V
buffers that the call reads are kept in `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import RegionalAbort
from ..kv.plain import Slots
from ..kv.store import Branch
from .eligibility import Form
from .tape import Around, Tape, Work

Forward = Callable[[dict[str, Any], Tensor, Slots], Tensor]
"""A function that computes a call: takes the inputs by name, the active tokens (bb, n_active) and the K/V
slots, and returns the output (bb, c, H, W)."""


@dataclass(frozen=True, eq=False)
class RegionalCall:
    """A regional call to capture.

    Attributes:
        inputs: by name; the image `x` is (bb, c, H, W).
        active_idx: active tokens, (bb, n_active).
        slots: the cached K/V rows of each attention layer, which the call reads and updates.
        forward: the function that computes the call.
        branches: the conditionings that the call evaluates.
        form: distinguishes this call from other calls on the same K/V buffers (`eligibility.form_of`).
    """

    inputs: dict[str, Any]
    active_idx: Tensor
    slots: Slots
    forward: Forward
    branches: tuple[Branch, ...] = ()
    form: Form = ()

    @property
    def key(self) -> tuple[tuple[Branch, ...], Form]:
        """A key that is equal for two calls if one graph may be replayed for both."""
        return self.branches, self.form


@dataclass(eq=False)
class CapturedCall:
    """A captured call: its input and output buffers, and the replay that computes the output from the inputs.

    Attributes:
        inputs: by name; tensors are the graph's own buffers.
        active_idx: buffer of the active tokens, (bb, n_active).
        output: buffer of the output, (bb, c, H, W).
        replay: launches the graph on the current stream.
        tape: the tape that captured it.
        off_device: by name, copies of the last values of inputs that arrive on another device than the
            graph's. The copies are on that other device, where new values are compared with them. Such
            inputs are rare: runs copy their conditionings to the graph's device in advance
            (host/conditionings.py), but another pack's guider may pass conditionings that were not copied.
        last_run: number of the last run that used it.
        advances: whether the call, before it overwrites K/V rows, keeps them as the rows of the previous
            evaluation (K/V formats that extrapolate). Running such a call twice leaves other K/V rows than
            running it once.
        layers: the evictable weights that it reads, as `residency.Residency.read` lists them.
    """

    inputs: dict[str, Any]
    active_idx: Tensor
    output: Tensor
    replay: Work
    tape: Tape
    off_device: dict[str, Tensor] = field(default_factory=dict)
    last_run: int = 0
    advances: bool = False
    layers: frozenset[int] = frozenset()

    def fits(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a replay can replace a call with these inputs: only the values of tensors may differ."""
        return self.inputs.keys() == inputs.keys() and all(
            _is_alike(self.off_device.get(name, buffer), inputs[name]) for name, buffer in self.inputs.items()
        )

    def run(self, inputs: Mapping[str, Any], active_idx: Tensor) -> Tensor:
        """Replay on these inputs. Returns the output buffer, (bb, c, H, W); the next replay overwrites it."""
        self._update(inputs, active_idx)
        self.replay()
        return self.output

    def launch(self, inputs: Mapping[str, Any], active_idx: Tensor) -> Work:
        """Launch a replay in parallel with the work that is enqueued next. Inputs that are not given keep the
        values of the last replay. Returns a function that makes the current stream wait for the output.
        """
        self._update(inputs, active_idx)
        return self.tape.launch(self.replay)

    def _update(self, inputs: Mapping[str, Any], active_idx: Tensor) -> None:
        """Copy the given inputs, some or all, and the active tokens to the graph's buffers."""
        for name, buffer in self.inputs.items():
            if isinstance(buffer, Tensor) and name in inputs:
                self._copy(name, buffer, inputs[name])
        self.active_idx.copy_(active_idx)

    def _copy(self, name: str, buffer: Tensor, value: Tensor) -> None:
        known = self.off_device.get(name)
        if known is not None and torch.equal(known, value):
            return  # the buffer has this value already; a copy would make the CPU wait for the device
        if known is not None:
            self.off_device[name] = value.clone()
        buffer.copy_(value)


class RowsAdvanced(RegionalAbort):
    """A call has advanced its K/V rows (`CapturedCall.advances`) but failed before its output was complete,
    so it must not be run again on these rows.
    """


@dataclass
class Attempt:
    """Progress of an attempt to capture a call; the call runs once eagerly before it is captured.

    Attributes:
        advances: as in `CapturedCall`.
        has_started: whether the call has started.
        output: the call's output, (bb, c, H, W), once it has completed.
    """

    advances: bool = False
    has_started: bool = False
    output: Tensor | None = None

    @property
    def has_advanced(self) -> bool:
        """Whether this attempt may already have advanced K/V rows (`CapturedCall.advances`)."""
        return self.advances and self.has_started

    def take_output(self, advanced: Slots, slots: Slots) -> Tensor | None:
        """If the call completed, put the K/V slots that it updated into `slots` and return its output.
        Otherwise return None.

        Args:
            advanced: the K/V slots that the call updated.
            slots: where to put them.

        Raises:
            RowsAdvanced: the call did not complete, but may have advanced K/V rows.
        """
        if self.output is None and self.has_advanced:
            raise RowsAdvanced("a call failed halfway while it was being captured")
        if self.output is not None:
            slots.update(advanced)
        return self.output


def capture(
    tape: Tape, call: RegionalCall, attempt: Attempt | None = None, around: Around = nullcontext
) -> CapturedCall:
    """Capture a call with its own buffers; afterwards the output buffer holds the call's output.

    All buffers are on the device of the image `x`. Conditionings on the CPU are copied there first, because a
    graph cannot capture that copy.

    Args:
        tape: captures the call's work on the device.
        call: the call to capture.
        attempt: updated as the call proceeds, also if the call fails.
        around: returns the context manager inside which the capture runs. The eager run before the capture
            is outside of this context manager.
    """
    device = call.inputs["x"].device
    tensors = {name: each for name, each in call.inputs.items() if isinstance(each, Tensor)}
    buffers = call.inputs | {name: each.to(device, copy=True) for name, each in tensors.items()}
    off_device = {name: each.clone() for name, each in tensors.items() if each.device != device}
    active_idx = call.active_idx.clone()
    x = call.inputs["x"]
    output = torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)
    attempt = attempt or Attempt()

    def work() -> None:
        attempt.has_started = True
        output.copy_(call.forward(buffers, active_idx, call.slots))
        attempt.output = output

    replay = tape.capture(work, around)
    return CapturedCall(buffers, active_idx, output, replay, tape, off_device, advances=attempt.advances)


def _is_alike(known: Any, value: Any) -> bool:
    if isinstance(known, Tensor) and isinstance(value, Tensor):
        layout = (known.shape, known.dtype, known.device)
        return layout == (value.shape, value.dtype, value.device)
    return not isinstance(known, Tensor) and not isinstance(value, Tensor) and known == value
