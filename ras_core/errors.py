"""The exceptions of this pack. Messages for users say what was found, what is expected, and what to do."""

from __future__ import annotations


class RASError(ValueError):
    """A setting or model that cannot be used, explained in three parts."""

    def __init__(self, came: str, expected: str, remedy: str):
        super().__init__(f"Multirate RAS: {came} Expected: {expected} What to do: {remedy}")


class RegionalAbort(RuntimeError):
    """Raised inside a regional call that cannot continue; the caller repeats the call with all tokens."""


class NotResident(RuntimeError):
    """Raised when the capture of a call finds a weight evicted from the device: the call then runs
    eagerly, and may be captured later.
    """
