"""Replays the captured calls of one evaluation in parallel.

If ComfyUI calls the network once per prompt, a call on few tokens leaves much of the device idle. But ComfyUI
requests the second call only when it has the output of the first. So the second call is launched early, with
guessed inputs: the image and the noise level are those of the first call, and all other inputs are those of
the previous request for the second call. A call is launched early only if, in an earlier evaluation, a guess
of its inputs would have been right. Every guess is compared with the inputs that ComfyUI then requests. The
device compares them, and the results are read asynchronously, at most two evaluations later, so that the
device need not wait for the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kv.main_memory import empty_in_main_memory
from .capture import CapturedCall
from .tape import Tape, Work

SHARED = ("x", "t")
"""Inputs that are the same in all calls of an evaluation: the image and its noise level."""

LATEST = 2
"""Number of evaluations after which the CPU waits for the result of a comparison, if the device has not yet
completed it."""

WRONG_GUESS = "a call of the network was launched early with the wrong inputs"


class Overlap:
    """The captured calls of one network in one run, and which of them to launch early."""

    def __init__(self) -> None:
        self._evaluations = 0
        self._is_allowed = True
        self._calls: list[CapturedCall] = []  # captured calls requested in this evaluation, in order
        self._order: list[CapturedCall] = []  # `_calls` of the latest evaluation before this one that had any
        self._requested = self._requested_before = 0  # number of all calls, in this evaluation and the last
        self._single: set[CapturedCall] = set()  # calls that serve a single branch in this run
        self._used: set[CapturedCall] = set()  # calls whose buffers hold inputs of this run
        self._launched: set[CapturedCall] = set()  # calls launched early in this evaluation
        self._waits: list[Work] = []
        self._checks: list[_Check] = []
        self._can_guess: dict[CapturedCall, bool] = {}

    @property
    def busy(self) -> list[Tape]:
        """Tapes of the calls that were captured or replayed in this evaluation. Calls on the same tape cannot
        run in parallel, so the next call to capture should get another tape than these.
        """
        return [captured.tape for captured in self._calls]

    def begin_evaluation(self, is_allowed: bool) -> str | None:
        """Prepare for the evaluation that starts now.

        Args:
            is_allowed: whether calls may be launched early in this evaluation. They may if ComfyUI makes its
                calls of the network one after the other, all with the same weights.

        Returns:
            A message if a call of an earlier evaluation was launched with wrong inputs, or None.
        """
        self._evaluations += 1
        self._is_allowed = is_allowed
        self._requested, self._requested_before = 0, self._requested
        self._order, self._calls = self._calls or self._order, []
        self._launched.clear()
        return self._read_checks(self._evaluations - LATEST)

    def begin_call(self) -> None:
        """Count a call of the network that ComfyUI makes, captured or not."""
        self._requested += 1

    def has_advanced(self, calls: Iterable[CapturedCall]) -> bool:
        """Whether one of these calls was launched early in this evaluation and so has advanced its K/V rows,
        but was not requested.
        """
        return any(each in self._launched and each.advances and each not in self._calls for each in calls)

    def end(self) -> str | None:
        """Wait for all comparisons after the last evaluation. Returns what went wrong, or None."""
        return self._read_checks(self._evaluations)

    def settle(self) -> None:
        """Make the device complete the calls that were launched early before it starts work that is enqueued
        later, because this work may use the same buffers.
        """
        for wait in self._waits:
            wait()
        self._waits.clear()

    def forget(self, calls: Iterable[CapturedCall] | None = None) -> None:
        """Stop tracking these calls, or all calls if None, before they are dropped or are used for other
        branches. If the device has not yet compared the inputs of an early replay with the actual ones, the
        result of that comparison is still read later.
        """
        self.settle()
        gone = self._used if calls is None else set(calls)
        self._calls = [each for each in self._calls if each not in gone]
        self._order = [each for each in self._order if each not in gone]
        self._can_guess = {each: right for each, right in self._can_guess.items() if each not in gone}
        for check in self._checks:
            check.call = None if check.call in gone else check.call
        self._launched -= gone
        self._single -= gone
        self._used = self._used - gone

    def add(self, captured: CapturedCall, n_branches: int = 1) -> None:
        """Add a call that was captured or replayed in this evaluation."""
        self._calls.append(captured)
        self._used.add(captured)
        if n_branches == 1:
            self._single.add(captured)

    def run(
        self, captured: CapturedCall, inputs: Mapping[str, Any], active_idx: Tensor, n_branches: int = 1
    ) -> Tensor:
        """Replay a call, or use the output of its early launch; `settle` must have been called. If it is the
        first call of the evaluation, launch the calls that are expected to follow. Returns the output,
        (bb, c, H, W).
        """
        is_launched = captured in self._launched
        if not self._calls:
            self._launch_others(captured, inputs, active_idx)
        elif is_launched or self._is_worth_comparing(captured):
            is_launched = self._compare(captured, inputs, is_launched) and is_launched
        self.add(captured, n_branches)
        return captured.output if is_launched else captured.run(inputs, active_idx)

    def _launch_others(self, first: CapturedCall, inputs: Mapping[str, Any], active_idx: Tensor) -> None:
        if not self._is_allowed or self._order[:1] != [first]:
            return
        busy = [first.tape]
        for other in self._order[1:]:
            is_free = other.tape not in busy and self._may_launch(other)
            if is_free and self._can_guess.get(other) and _are_alike(first, other):
                self._waits.append(other.launch({name: inputs[name] for name in SHARED}, active_idx))
                self._launched.add(other)
                busy.append(other.tape)

    def _may_launch(self, other: CapturedCall) -> bool:
        """Whether this call may be launched early.

        After a wrong guess, a call that advances K/V rows cannot be repeated, because it would advance its
        rows twice. So such a call must meet three conditions:
        - It is the only call left in the evaluation.
        - It has a single branch. ComfyUI cannot batch such a call in another way.
        - It has no inputs on the CPU. Such inputs could prove the guess wrong after the launch.
        """
        return not other.advances or (
            self._requested_before == 2 and other in self._single and not other.off_device
        )

    def _is_worth_comparing(self, captured: CapturedCall) -> bool:
        """Whether a guess of this call's inputs would have the right shapes, and no guess for this call has
        been compared yet.
        """
        is_open = captured in self._used and captured not in self._can_guess
        return is_open and _are_alike(self._calls[0], captured)

    def _compare(self, captured: CapturedCall, inputs: Mapping[str, Any], is_launched: bool) -> bool:
        """Enqueue the comparison of a guess with the actual inputs. Returns False if inputs on the CPU
        already show that the guess is wrong.
        """
        if any(not torch.equal(known, inputs[name]) for name, known in captured.off_device.items()):
            self._can_guess[captured] = False
            return False
        guess = captured.inputs | {name: self._calls[0].inputs[name] for name in SHARED}
        on_device = [name for name, value in guess.items() if isinstance(value, Tensor)]
        differences = [guess[name] != inputs[name] for name in on_device if name not in captured.off_device]
        found = torch.stack([each.any() for each in differences])
        self._checks.append(_Check.enqueue(captured, is_launched, self._evaluations, found))
        return True

    def _read_checks(self, wait_until: int) -> str | None:
        """Read the comparisons that the device has completed; wait for comparisons enqueued in the
        evaluations up to number `wait_until`. Returns what went wrong, or None.
        """
        trouble, pending = None, []
        for check in self._checks:
            if not check.is_ready(check.evaluation <= wait_until):
                pending.append(check)
                continue
            if (guessed := check.call) is not None:
                self._can_guess[guessed] = check.is_right and self._can_guess.get(guessed, True)
            if check.was_launched and not check.is_right:
                trouble = WRONG_GUESS
        self._checks = pending
        return trouble


@dataclass
class _Check:
    """A comparison of guessed inputs with the actual ones, done by the device.

    Attributes:
        call: the call whose inputs were guessed; None after `Overlap.forget` of this call.
        was_launched: whether the call was launched with the guessed inputs.
        evaluation: number of the evaluation in which the comparison was enqueued.
        differences: (n,) bool, one per input: whether the guess differs from the actual input.
        event: CUDA event that the device reaches when `differences` has been copied to main memory; None if
            `differences` was computed there.
    """

    call: CapturedCall | None
    was_launched: bool
    evaluation: int
    differences: Tensor
    event: torch.cuda.Event | None = None

    @classmethod
    def enqueue(cls, call: CapturedCall, was_launched: bool, evaluation: int, found: Tensor) -> _Check:
        """Start to copy the differences `found`, (n,) bool on the device, to main memory; do not wait."""
        if found.device.type != "cuda":
            return cls(call, was_launched, evaluation, found)
        arrived = empty_in_main_memory(found, found.shape, pinned=True)
        arrived.copy_(found, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(call, was_launched, evaluation, arrived, event)

    def is_ready(self, wait: bool) -> bool:
        if self.event is not None and wait:
            self.event.synchronize()
        return self.event is None or self.event.query()

    @property
    def is_right(self) -> bool:
        return not bool(self.differences.any())


def _are_alike(first: CapturedCall, other: CapturedCall) -> bool:
    """Whether the `SHARED` inputs and the active tokens of both calls have the same shapes."""
    same = all(first.inputs[name].shape == other.inputs[name].shape for name in SHARED)
    return same and first.active_idx.shape == other.active_idx.shape
