"""Captured calls of one evaluation, replayed in parallel.

If ComfyUI calls the network once per prompt, a call on few tokens leaves much of the device idle. ComfyUI
requests the second output only once it has the first, so the second call is launched on a guess: the image
and the noise level of the first one, and otherwise its own inputs from the last time in this run. A call is
guessed only once such a guess would have been right, and each guess is then compared with the actual request.
The device makes the comparisons; they are read asynchronously, at most two evaluations later, so that it
never runs idle for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kv.main_memory import empty_in_main_memory
from .capture import Recording, Tape, Work

SHARED = ("x", "t")
"""Inputs that are the same in all calls of an evaluation: the picture and its noise level."""

LATEST = 2
"""Evaluations after which a comparison is waited for."""

WRONG_GUESS = "a call of the network was launched early with the wrong inputs"


class SideBySide:
    """The recorded calls of one run."""

    def __init__(self) -> None:
        self._evaluations = 0
        self._is_allowed = True
        self._calls: list[Recording] = []  # of this evaluation
        self._order: list[Recording] = []  # of the last one that had any
        self._asked = self._asked_before = 0  # calls of this evaluation and of the last one, captured or not
        self._lone: set[Recording] = set()  # those that serve a single branch in this run
        self._used: set[Recording] = set()  # their places hold inputs of this run
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
        self._evaluations += 1
        self._is_allowed = is_allowed
        self._asked, self._asked_before = 0, self._asked
        self._order, self._calls = self._calls or self._order, []
        self._begun.clear()
        return self._read_checks(self._evaluations - LATEST)

    def begin_call(self) -> None:
        """ComfyUI calls the network."""
        self._asked += 1

    def has_advanced(self, recordings: Iterable[Recording]) -> bool:
        """Whether one of these was launched early and has advanced its K/V rows, but was not requested."""
        return any(each in self._begun and each.advances and each not in self._calls for each in recordings)

    def end(self) -> str | None:
        """The last evaluation is over; returns what went wrong, or None."""
        return self._read_checks(self._evaluations)

    def settle(self) -> None:
        """Have the device wait for what was begun, before it reads or writes what that works on."""
        for wait in self._waits:
            wait()
        self._waits.clear()

    def forget(self, recordings: Iterable[Recording] | None = None) -> None:
        """These recordings, or all, go or come to serve other calls; comparisons that are under way stay."""
        self.settle()
        gone = self._used if recordings is None else set(recordings)
        self._calls = [each for each in self._calls if each not in gone]
        self._order = [each for each in self._order if each not in gone]
        self._can_guess = {each: right for each, right in self._can_guess.items() if each not in gone}
        for check in self._checks:
            check.recording = None if check.recording in gone else check.recording
        self._begun, self._used, self._lone = self._begun - gone, self._used - gone, self._lone - gone

    def add(self, recording: Recording, n_branches: int = 1) -> None:
        """A call of this evaluation that has just been recorded."""
        self._calls.append(recording)
        self._used.add(recording)
        if n_branches == 1:
            self._lone.add(recording)

    def run(
        self, recording: Recording, inputs: Mapping[str, Any], active_idx: Tensor, n_branches: int = 1
    ) -> Tensor:
        """A call's output, (bb, c, H, W). Calls that are expected to follow may be launched with it; those
        launched earlier are settled.
        """
        is_begun = recording in self._begun
        if not self._calls:
            self._begin_others(recording, inputs, active_idx)
        elif is_begun or self._is_open(recording):
            is_begun = self._compare(recording, inputs, is_begun) and is_begun
        self.add(recording, n_branches)
        return recording.output if is_begun else recording.run(inputs, active_idx)

    def _begin_others(self, first: Recording, inputs: Mapping[str, Any], active_idx: Tensor) -> None:
        if not self._is_allowed or self._order[:1] != [first]:
            return
        busy = [first.tape]
        for other in self._order[1:]:
            is_free = other.tape not in busy and self._will_be_asked_for(other)
            if is_free and self._can_guess.get(other) and _are_alike(first, other):
                self._waits.append(other.begin({name: inputs[name] for name in SHARED}, active_idx))
                self._begun.add(other)
                busy.append(other.tape)

    def _will_be_asked_for(self, other: Recording) -> bool:
        """Whether ComfyUI is certain to make this call in the captured form. Only calls that advance K/V rows
        need that, since running them again does not undo a wrong guess. Such a call must be the only one
        left, of a single branch, with nothing that it could be batched with.
        """
        return not other.advances or (self._asked_before == 2 and other in self._lone and not other.away)

    def _is_open(self, recording: Recording) -> bool:
        """Whether it is worth a comparison: a guess would have had the right form, and no more is known."""
        return (
            recording in self._used
            and recording not in self._can_guess
            and _are_alike(self._calls[0], recording)
        )

    def _compare(self, recording: Recording, inputs: Mapping[str, Any], is_begun: bool) -> bool:
        """Whether a guess can be right, as far as that is known without the device; the rest comes later."""
        if any(not torch.equal(known, inputs[name]) for name, known in recording.away.items()):
            self._can_guess[recording] = False
            return False
        guess = recording.inputs | {name: self._calls[0].inputs[name] for name in SHARED}
        on_device = [name for name, value in guess.items() if isinstance(value, Tensor)]
        differences = [guess[name] != inputs[name] for name in on_device if name not in recording.away]
        found = torch.stack([each.any() for each in differences])
        self._checks.append(_Check.begin(recording, is_begun, self._evaluations, found))
        return True

    def _read_checks(self, wait_until: int) -> str | None:
        """Comparisons that the device has made, and those up to an evaluation whether it has or not."""
        trouble, pending = None, []
        for check in self._checks:
            if not check.is_ready(check.evaluation <= wait_until):
                pending.append(check)
                continue
            if (guessed := check.recording) is not None:
                self._can_guess[guessed] = check.is_right and self._can_guess.get(guessed, True)
            if check.was_begun and not check.is_right:
                trouble = WRONG_GUESS
        self._checks = pending
        return trouble


@dataclass
class _Check:
    """Whether a guess was right, or would have been: known once the device has come so far."""

    recording: Recording | None
    was_begun: bool
    evaluation: int
    found: Tensor
    event: torch.cuda.Event | None = None

    @classmethod
    def begin(cls, recording: Recording, was_begun: bool, evaluation: int, found: Tensor) -> _Check:
        """`found`, (n,) bool: differences in n inputs, on the device."""
        if found.device.type != "cuda":
            return cls(recording, was_begun, evaluation, found)
        arrived = empty_in_main_memory(found, found.shape, pinned=True)
        arrived.copy_(found, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(recording, was_begun, evaluation, arrived, event)

    def is_ready(self, wait: bool) -> bool:
        if self.event is not None and wait:
            self.event.synchronize()
        return self.event is None or self.event.query()

    @property
    def is_right(self) -> bool:
        return not bool(self.found.any())


def _are_alike(first: Recording, other: Recording) -> bool:
    """Whether what the first one gets can be put into the other's places."""
    same = all(first.inputs[name].shape == other.inputs[name].shape for name in SHARED)
    return same and first.active_idx.shape == other.active_idx.shape
