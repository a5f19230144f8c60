"""The exceptions of this pack, and checks of single values that raise them.

Messages for users say what was found, what is expected, and what to do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

LONGEST_MESSAGE, LONGEST_QUOTE = 300, 80
"""In characters."""

LEAST = 60
"""Characters of each part of a message that are never removed to shorten it."""


class RASError(ValueError):
    """A setting or model that cannot be used, explained in three parts, in at most LONGEST_MESSAGE
    characters: what came is shortened first, then what is expected.
    """

    def __init__(self, came: str, expected: str, remedy: str):
        frame = len(_message("", "", ""))
        came = shortened(came, max(LONGEST_MESSAGE - frame - len(expected) - len(remedy), LEAST))
        expected = shortened(expected, max(LONGEST_MESSAGE - frame - len(came) - len(remedy), LEAST))
        super().__init__(_message(came, expected, shortened(remedy, LONGEST_MESSAGE - frame - 2 * LEAST)))


def _message(came: str, expected: str, remedy: str) -> str:
    return f"Multirate RAS: {came} Expected: {expected} What to do: {remedy}"


def shortened(text: str, most: int) -> str:
    """The text with at most `most` characters: its middle is replaced by "..." if it is longer."""
    if len(text) <= most:
        return text
    start = (most - 3) * 2 // 3
    return f"{text[:start]}...{text[len(text) - (most - 3 - start) :]}"


def quoted(value: object) -> str:
    """Any value as a message shows it: its `repr`, with at most LONGEST_QUOTE characters.

    Long texts and lists are not converted as a whole, and a value whose `repr` fails is named by its class.
    """
    if isinstance(value, str):
        value = value[: 2 * LONGEST_QUOTE]
    elif isinstance(value, (bytes, list, tuple, dict, set, frozenset)):
        return shortened(_Brief().repr(value), LONGEST_QUOTE)
    try:
        return shortened(repr(value), LONGEST_QUOTE)
    except Exception:  # the class is another pack's, or the number has more digits than Python converts
        return f"a value of class {shortened(type(value).__name__, LEAST)}"


class _Brief(reprlib.Repr):
    """Shows the first values of a list, and values inside values only to a small depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 12, 12, 6
        self.maxstring = self.maxlong = self.maxother = LONGEST_QUOTE

    def repr_int(self, value: int, level: int) -> str:
        return quoted(value)


class RegionalAbort(RuntimeError):
    """Raised inside a regional call that cannot continue; the caller repeats the call with all tokens."""


class NotResident(RuntimeError):
    """Raised in an attempt to capture a call as a CUDA graph, if ComfyUI has evicted one of the network's
    weights from the device. The call then runs eagerly, and may be captured later.
    """


def check_range(name: str, value: float, low: float, high: float, also: str = "") -> None:
    """Refuse anything but a number from `low` to `high`; `also` names further values that the caller takes.

    Raises:
        RASError: also for NaN and infinity.
    """
    if isinstance(value, (int, float)) and low <= value <= high:
        return
    expected = f"a number from {low:g} to {high:g}{' ' + also if also else ''}."
    raise RASError(f"{name} = {quoted(value)}.", expected, f"set {name} to a value in that range.")


def check_counts(name: str, values: Sequence[int]) -> None:
    """Refuse anything but whole numbers of 0 or more."""
    for value in values:
        if not isinstance(value, int) or value < 0:
            raise RASError(f"{name} = {quoted(value)}.", "a whole number of 0 or more.", f"correct {name}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse anything but one of the choices."""
    if isinstance(value, str) and value in choices:
        return
    raise RASError(
        f"{name} = {quoted(value)}.", f"one of {', '.join(choices)}.", f"pick one of these for {name}."
    )
