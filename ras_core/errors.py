"""The exceptions of this pack, and functions that check a single value and raise an exception if it is not
valid.

Error messages for users state what was found, what is expected, and what to do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

LONGEST_MESSAGE, LONGEST_QUOTE = 300, 80
"""Limits in characters: of the whole message of a RASError, and of a value that a message quotes."""

LEAST = 60
"""When a message is shortened, each of its parts keeps at least this many characters."""


class RASError(ValueError):
    """Raised for a setting or a model that cannot be used. The message has three parts and at most
    LONGEST_MESSAGE characters. If it would be longer, the first part is shortened first, then the second.

    Args:
        came: what was found.
        expected: what would be valid.
        remedy: what the user can do.
    """

    def __init__(self, came: str, expected: str, remedy: str):
        frame = len(_message("", "", ""))
        came = shortened(came, max(LONGEST_MESSAGE - frame - len(expected) - len(remedy), LEAST))
        expected = shortened(expected, max(LONGEST_MESSAGE - frame - len(came) - len(remedy), LEAST))
        super().__init__(_message(came, expected, shortened(remedy, LONGEST_MESSAGE - frame - 2 * LEAST)))


def _message(came: str, expected: str, remedy: str) -> str:
    return f"Multirate RAS: {came} Expected: {expected} What to do: {remedy}"


def shortened(text: str, most: int) -> str:
    """The text, in which "..." replaces the middle part if the text has more than `most` characters."""
    if len(text) <= most:
        return text
    start = (most - 3) * 2 // 3
    return f"{text[:start]}...{text[len(text) - (most - 3 - start) :]}"


def quoted(value: object) -> str:
    """Any value as a message shows it: its `repr`, with at most LONGEST_QUOTE characters.

    Only the beginning of a long text or list is converted. If `repr` fails, the result names the value's
    class.
    """
    if isinstance(value, str):
        value = value[: 2 * LONGEST_QUOTE]
    elif isinstance(value, (bytes, list, tuple, dict, set, frozenset)):
        return shortened(_Brief().repr(value), LONGEST_QUOTE)
    try:
        return shortened(repr(value), LONGEST_QUOTE)
    except Exception:  # another pack's class failed, or an int has more digits than Python converts
        return f"a value of class {shortened(type(value).__name__, LEAST)}"


def path_end(path: object) -> str:
    """The end of a path, at most LEAST characters, so that a message keeps room for everything else."""
    text = str(path)
    return text if len(text) <= LEAST else "..." + text[3 - LEAST :]


class _Brief(reprlib.Repr):
    """Converts only the first elements of a container, and only the first levels of nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 12, 12, 6
        self.maxstring = self.maxlong = self.maxother = LONGEST_QUOTE

    def repr_int(self, value: int, level: int) -> str:
        return quoted(value)


class RegionalAbort(RuntimeError):
    """Raised inside a regional call that cannot continue; the caller repeats the call with all tokens."""


class NotResident(RuntimeError):
    """Raised when a call is about to be captured as a CUDA graph, but ComfyUI has evicted one of the
    network's weights from the device. The call then runs eagerly instead, and may be captured at a later
    step.
    """


def check_range(name: str, value: float, low: float, high: float, also: str = "") -> None:
    """Refuse a value that is not a number from `low` to `high`. For the error message, `also` names further
    values that the caller accepts and does not pass to this function.

    Raises:
        RASError: the value is out of this range, NaN, infinite or not a number.
    """
    if isinstance(value, (int, float)) and low <= value <= high:
        return
    expected = f"a number from {low:g} to {high:g}{' ' + also if also else ''}."
    raise RASError(f"{name} = {quoted(value)}.", expected, f"set {name} to a value in that range.")


def check_counts(name: str, values: Sequence[int]) -> None:
    """Raise a RASError if one of the values is not a whole number of 0 or more."""
    for value in values:
        if not isinstance(value, int) or value < 0:
            raise RASError(f"{name} = {quoted(value)}.", "a whole number of 0 or more.", f"correct {name}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a RASError if the value is not one of the choices."""
    if isinstance(value, str) and value in choices:
        return
    raise RASError(
        f"{name} = {quoted(value)}.", f"one of {', '.join(choices)}.", f"pick one of these for {name}."
    )
