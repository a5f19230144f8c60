"""Recorded calls of one evaluation, side by side.

Where the host calls the network once for each prompt, a call on few tokens leaves much of the device idle.
The host asks for the second output only once it has the first, so the second call is begun on a guess: the
picture and the noise level of the first one, and else what it got the last time. A run first looks whether
that would have been right. Later guesses are compared with what is then asked for, too. The device keeps the
results, and they are read when it has come so far: nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .recording import Recording, Tape, Work

SHARED = ("x", "t")
"""Inputs that are the same in all calls of an evaluation: the picture and its noise level."""

WRONG_GUESS = "a call of the network was begun early, and should have had other inputs"


class SideBySide:
    """The recorded calls of one run."""

    def __init__(self) -> None:
        self._is_allowed = True
        self._calls: list[Recording] = []  # of this evaluation
        self._order: list[Recording] = []  # of the last one that had any
        self._begun: set[Recording] = set()
        self._waits: list[Work] = []
        self._checks: list[_Check] = []
        self._can_guess: dict[Recording, bool] = {}

    @property
    def busy(self) -> list[Tape]:
        """Tapes of this evaluation's calls: another call of it may run beside these if it has its own."""
        return [recording.tape for recording in self._calls]

    def begin_evaluation(self, is_allowed: bool) -> str | None:
        """Another evaluation starts.

        Args:
            is_allowed: whether weights are the same in all of its calls.

        Returns:
            What went wrong in an earlier one, or None.
        """
        self._is_allowed = is_allowed
        self._order, self._calls = self._calls or self._order, []
        return self._end_evaluation(wait=False)

    def close(self) -> str | None:
        """The run is over; returns what went wrong, or None."""
        return self._end_evaluation(wait=True)

    def settle(self) -> None:
        """Have the device wait for what was begun, before it reads or writes what that works on."""
        for wait in self._waits:
            wait()
        self._waits.clear()

    def add(self, recording: Recording) -> None:
        """A call of this evaluation that has just been recorded."""
        self._calls.append(recording)

    def run(self, recording: Recording, inputs: Mapping[str, Any], active_idx: Tensor) -> Tensor:
        """A call's output, (bb, c, H, W); those that will follow may be begun with it."""
        self.settle()
        is_begun = recording in self._begun
        if self._calls and (is_begun or recording not in self._can_guess):
            is_begun = self._compare(recording, inputs, is_begun) and is_begun
        elif not self._calls:
            self._begin_others(recording, inputs, active_idx)
        self._calls.append(recording)
        return recording.output if is_begun else recording.run(inputs, active_idx)

    def _begin_others(self, first: Recording, inputs: Mapping[str, Any], active_idx: Tensor) -> None:
        if not self._is_allowed or self._order[:1] != [first]:
            return
        busy = [first.tape]
        for other in self._order[1:]:
            if self._can_guess.get(other) and other.tape not in busy:
                self._waits.append(other.begin({name: inputs[name] for name in SHARED}, active_idx))
                self._begun.add(other)
                busy.append(other.tape)

    def _compare(self, recording: Recording, inputs: Mapping[str, Any], is_begun: bool) -> bool:
        """Whether a guess can be right; whether it is comes to light later."""
        guess = recording.inputs | {name: self._calls[0].inputs[name] for name in SHARED}
        if not _can_be(guess, recording.away, inputs):
            self._can_guess[recording] = False
            return False
        on_device = [name for name, value in guess.items() if isinstance(value, Tensor)]
        differences = [guess[name] != inputs[name] for name in on_device if name not in recording.away]
        found = torch.stack([each.any() for each in differences])
        self._checks.append(_Check.begin(recording, is_begun, found))
        return True

    def _end_evaluation(self, wait: bool) -> str | None:
        self.settle()
        self._begun.clear()
        trouble, pending = None, []
        for check in self._checks:
            if not check.is_ready(wait):
                pending.append(check)
            elif check.is_right:
                self._can_guess.setdefault(check.recording, True)
            else:
                self._can_guess[check.recording] = False
                trouble = WRONG_GUESS if check.was_begun else trouble
        self._checks = pending
        return trouble


@dataclass(frozen=True)
class _Check:
    """Whether a guess was right, or would have been: known once the device has come so far."""

    recording: Recording
    was_begun: bool
    found: Tensor
    event: torch.cuda.Event | None = None

    @classmethod
    def begin(cls, recording: Recording, was_begun: bool, found: Tensor) -> _Check:
        """`found`, (n,) bool: differences between n inputs, on the device."""
        if found.device.type != "cuda":
            return cls(recording, was_begun, found)
        arrived = torch.empty(found.shape, dtype=torch.bool, pin_memory=True)
        arrived.copy_(found, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(recording, was_begun, arrived, event)

    def is_ready(self, wait: bool) -> bool:
        if self.event is not None and wait:
            self.event.synchronize()
        return self.event is None or self.event.query()

    @property
    def is_right(self) -> bool:
        return not bool(self.found.any())


def _can_be(guess: Mapping[str, Any], away: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> bool:
    """Whether a guess is right as far as that is known without the device.

    Args:
        guess: all inputs of the call.
        away: those of them that the host keeps elsewhere.
        inputs: what the call really gets.
    """
    for name, value in guess.items():
        real = inputs.get(name)
        if isinstance(value, Tensor) != isinstance(real, Tensor):
            return False
        if isinstance(value, Tensor):
            if value.shape != real.shape or (name in away and not torch.equal(away[name], real)):
                return False
        elif value != real:
            return False
    return True
