"""Keeps the traces of a patched model's runs, each with hashes of the latents that its run returned, so that
a node can find the trace that belongs to a latent.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..run.trace import Trace

logger = logging.getLogger(__name__)

OTHER_LATENT = (
    "this latent is not the result of a run of the connected model: it comes from another model or from a "
    "sampler without steps (denoise 0), or another node changed it after sampling"
)
NOT_PATCHED = (
    "no RAS node has patched the connected model: RAS Patch Model is bypassed or muted, or not connected here"
)
NO_RUN = (
    "the connected model has not sampled anything: the latent comes from another model or from a sampler "
    "without steps (denoise 0)"
)

KEPT_BYTES = 2**26
"""Size limit of all kept traces together, in bytes. If it is exceeded, the oldest traces are dropped. The
trace of the last run is kept at any size."""


class Traces:
    """The traces of the latest runs.

    A latent is identified by its values, not by the identity of its tensor. This is because nodes between the
    sampler and the node that asks for the trace may copy the LATENT, and the sampler moves its result to
    another device.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Trace, frozenset[str]]] = []

    @property
    def last(self) -> Trace | None:
        return self._kept[-1][0] if self._kept else None

    def add(self, trace: Trace, latents: Iterable[Any]) -> None:
        """Keep the trace of a run that returned these latents."""
        self._kept.append((trace, frozenset().union(*map(_digests, latents))))
        while len(self._kept) > 1 and sum(_nbytes(kept) for kept, _ in self._kept) > KEPT_BYTES:
            del self._kept[0]

    def of(self, latent: Any) -> Trace | None:
        """The trace of the latest run that returned this latent; None if no run with a kept trace did."""
        wanted = _digests(latent)
        return next((trace for trace, known in reversed(self._kept) if wanted & known), None)


def no_trace(reason: str) -> Trace:
    """An empty trace with the reason, which is logged."""
    logger.warning("Multirate RAS: no trace: %s.", reason)
    return Trace.empty(reason)


def _nbytes(trace: Trace) -> int:
    """Size of the trace's masks and scores in bytes."""
    arrays = ((each.active, each.score) for each in trace.evaluations)
    return sum(array.nbytes for pair in arrays for array in pair if array is not None)


def _digests(latent: Any) -> set[str]:
    """Hashes of the latent's values in float32, and in the data type to which ComfyUI converts latents
    between nodes.
    """
    if type(latent) is not Tensor or latent.layout is not torch.strided:
        return set()
    narrower = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()
    return {_digest(latent.to(dtype)) for dtype in {torch.float32, narrower}}


def _digest(latent: Tensor) -> str:
    values = latent.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(repr(tuple(latent.shape)).encode() + values).hexdigest()


class Progress:
    """The callback of a run's sampler: counts the finished steps, and calls the user's callback.

    Args:
        finish: function that is called with the number of each finished step.
        given: the callback that ComfyUI passed to the sampler, or None.

    Attributes:
        denoised: the denoised estimate of the last finished step, which some sampler nodes return as a second
            latent; None before the first step has finished.
    """

    def __init__(self, finish: Callable[[int], None], given: Callable[..., None] | None):
        self._finish, self._given = finish, given
        self.denoised: Tensor | None = None

    def __call__(self, step: int, denoised: Tensor, *others: Any, **more: Any) -> None:
        self._finish(step)
        self.denoised = denoised
        if self._given is not None:
            self._given(step, denoised, *others, **more)
