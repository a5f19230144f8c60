"""The exceptions of this pack. Messages for users say what was found, what is expected, and what to do."""

from __future__ import annotations


class RASError(ValueError):
    """A setting or model that cannot be used, explained in three parts."""

    def __init__(self, came: str, expected: str, remedy: str):
        super().__init__(f"Multirate RAS: {came} Expected: {expected} What to do: {remedy}")


class RegionalAbort(RuntimeError):
    """Raised inside a regional call that cannot continue; the caller repeats the call with all tokens."""


class NotResident(RuntimeError):
    """Raised when a CUDA graph of a call is captured while a weight is evicted from the device. The call then
    runs eagerly, and may be captured later.
    """
