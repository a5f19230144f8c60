"""The exceptions of this pack. Messages for users say what was found, what is expected, and what to do."""

from __future__ import annotations


class RASError(ValueError):
    """A setting or model that cannot be used, explained in three parts."""

    def __init__(self, came: str, expected: str, remedy: str):
        super().__init__(f"Multirate RAS: {came} Expected: {expected} What to do: {remedy}")


class RegionalAbort(RuntimeError):
    """Raised inside a regional call that cannot continue; the caller repeats the call with all tokens."""


class NotResident(RuntimeError):
    """Raised in an attempt to capture a call as a CUDA graph, if ComfyUI has evicted one of the network's
    weights from the device. The call then runs eagerly, and may be captured later.
    """
