"""Memory for the keys and values of one call, allocated as one block."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ALIGNED = 512
"""Bytes; alignment of PyTorch's own allocations."""

SPARE = 2**18
"""Bytes that aligning some hundreds of tensors may waste."""


class Arena:
    """The memory of all keys and values that one call keeps, allocated at once.

    Allocated one by one, between the network's own tensors, they leave gaps that fit nothing else: a third of
    the cache's size for SD3-medium at 1024 px.

    Args:
        nbytes: what the call is expected to keep; tensors beyond that are allocated one by one, all if 0.
    """

    def __init__(self, nbytes: int = 0):
        self._nbytes = nbytes + SPARE if nbytes else 0
        self._left: Tensor | None = None

    def copy(self, t: Tensor) -> Tensor:
        """A contiguous copy of any tensor."""
        if self._left is None:
            self._left = self._allocated(t.device)
        end = -(-t.nbytes // ALIGNED) * ALIGNED
        if end > self._left.numel() or t.device != self._left.device:
            return t.clone(memory_format=torch.contiguous_format)
        piece, self._left = self._left[: t.nbytes], self._left[end:]
        return piece.view(t.dtype).view(t.shape).copy_(t)

    def _allocated(self, device: torch.device) -> Tensor:
        try:
            return torch.empty(self._nbytes, dtype=torch.uint8, device=device)
        except torch.cuda.OutOfMemoryError:  # single tensors may still fit
            return torch.empty(0, dtype=torch.uint8, device=device)


def copies(tensors: Iterable[Tensor], arena: Arena | None = None) -> tuple[Tensor, ...]:
    """Contiguous copies, in an arena if there is one."""
    arena = arena or Arena()
    return tuple(arena.copy(t) for t in tensors)
