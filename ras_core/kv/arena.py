"""One block of device memory for the cached keys and values of one call of the network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ALIGNED = 512
"""Alignment of each tensor in the block, in bytes; PyTorch's CUDA allocator uses the same alignment."""

SPARE = 2**18
"""Bytes added to the block for alignment padding, enough for 512 tensors."""


class Arena:
    """Memory for all keys and values that one call of the network adds to the cache, allocated as one block.

    Separate allocations, one per tensor, would alternate in memory with the network's temporary tensors and
    fragment the memory: once the temporary tensors are freed, gaps remain between the cached ones. For
    SD3-medium at 1024 px, these gaps amount to a third of the cache's size.

    Args:
        nbytes: expected size of all keys and values, in bytes. Tensors that do not fit into the block are
            allocated one by one. With 0, there is no block, and all tensors are allocated one by one.
    """

    def __init__(self, nbytes: int = 0):
        self._nbytes = nbytes + SPARE if nbytes else 0
        self._left: Tensor | None = None

    def copy(self, t: Tensor) -> Tensor:
        """A contiguous copy of a tensor, in the block if it fits and allocated separately otherwise."""
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
        except torch.cuda.OutOfMemoryError:  # the tensors may still fit one by one
            return torch.empty(0, dtype=torch.uint8, device=device)


def copies(tensors: Iterable[Tensor], arena: Arena | None = None) -> tuple[Tensor, ...]:
    """Contiguous copies of these tensors, in the arena's block if an arena is given, else allocated one by
    one.
    """
    arena = arena or Arena()
    return tuple(arena.copy(t) for t in tensors)
