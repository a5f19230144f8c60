"""The traces of a patched model's runs, each with the latent that its run returned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..run.trace import Trace

KEPT_BYTES = 2**26
"""The latest traces are kept up to this size together, and the last one at any size."""


class Traces:
    """The traces of the latest runs.

    A latent is identified by its values: nodes between a sampler and its trace may copy the LATENT, and the
    sampler moves its tensor to another device.
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
        """The trace of the latest run that returned this latent; None if none of the kept runs did."""
        wanted = _digests(latent)
        return next((trace for trace, known in reversed(self._kept) if wanted & known), None)


def _nbytes(trace: Trace) -> int:
    """Memory of the trace's masks and scores."""
    arrays = ((each.active, each.score) for each in trace.evaluations)
    return sum(array.nbytes for pair in arrays for array in pair if array is not None)


def _digests(latent: Any) -> set[str]:
    """Hashes of the latent's values, as they are and as samplers convert them for other nodes."""
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
        finish: is called with the number of each finished step.
        given: ComfyUI's callback, or None.

    Attributes:
        denoised: the last step's denoised estimate, which some sampler nodes output too; None before it.
    """

    def __init__(self, finish: Callable[[int], None], given: Callable[..., None] | None):
        self._finish, self._given = finish, given
        self.denoised: Tensor | None = None

    def __call__(self, step: int, denoised: Tensor, *others: Any, **more: Any) -> None:
        self._finish(step)
        self.denoised = denoised
        if self._given is not None:
            self._given(step, denoised, *others, **more)
