"""Keys and values in main memory, copied to the device while the preceding attention is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..rows import Pair, RowIndex, scatter_into
from .plain import Keep, KVRows
from .spec import KVFormat


@dataclass
class MainMemoryRows(KVRows):
    """K and V in main memory, unrounded; the memory is pinned if the network runs on a GPU. The run's
    offloader copies them to the device and back.
    """

    offloader: Offloader
    format_name: ClassVar[str] = "cpu"
    is_fetched: ClassVar[bool] = True

    @classmethod
    def of(
        cls, key: Tensor, value: Tensor, prefix: int, suffix: int, *, offloader: Offloader
    ) -> MainMemoryRows:
        empty = tuple(empty_in_main_memory(t, t.shape, pinned=t.device.type == "cuda") for t in (key, value))
        kept = cls(empty, prefix, suffix, offloader)
        kept.write(key, value)
        return kept

    @classmethod
    def keeper(cls) -> Keep:
        """`of` with its argument `offloader` set to one offloader for the whole run."""
        return partial(cls.of, offloader=Offloader())

    def fits(self, key: Tensor, value: Tensor, prefix: int) -> bool:
        return self.prefix == prefix and all(
            kept.shape == t.shape and kept.dtype == t.dtype
            for kept, t in zip(self.tensors, (key, value), strict=True)
        )

    def write(self, key: Tensor, value: Tensor) -> None:
        buffers = self.offloader.buffers(self, key.device)
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer.copy_(new)
        self.offloader.store(self, buffers)

    def update(self, index: RowIndex, fresh: Pair) -> Pair:
        buffers = self.offloader.fetch(self, fresh[0].device)
        for buffer, rows in zip(buffers, fresh, strict=True):
            scatter_into(buffer, index.flat, rows)
        self.offloader.store(self, buffers)
        return buffers

    def read(self) -> Pair:
        self._settle()
        return self.key, self.value

    def prefetch(self) -> None:
        self.offloader.prefetch(self)

    def _empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return empty_in_main_memory(like, shape, pinned=like.is_pinned())

    def _settle(self) -> None:
        self.offloader.settle()


class Offloader:
    """Copies rows between main memory and two pairs of buffers on the device, in parallel with computation.

    While one attention reads one pair of buffers, the next attention's rows are copied into the other pair.
    CUDA streams wait for each other; the CPU does not wait for copies. After an attention, all rows are
    copied back to main memory, not only the fresh ones. This costs little, because the bus transfers in both
    directions at once; to scatter only the fresh rows in main memory, the CPU would have to wait for the
    device.

    Attributes:
        late: how often `fetch` was called for rows that had not been prefetched.
    """

    def __init__(self) -> None:
        self._memory: list[tuple[Tensor, ...]] = [(), ()]
        self._turn = 0
        self._prefetched: tuple[MainMemoryRows, Pair] | None = None
        self._device: torch.device | None = None
        self._inward = self._outward = None  # streams for copies to the device and to main memory
        self.late = 0

    def buffers(self, rows: MainMemoryRows, device: torch.device) -> Pair:
        """A pair of buffers on the device in the shapes of these rows. The current stream may write into them
        without waiting for earlier copies, because this function makes it wait for them.
        """
        self._prefetched = None  # the caller may overwrite prefetched rows
        self._use(device)
        self._wait(self._main, self._inward, self._outward)
        return self._next_buffers(rows)

    def prefetch(self, rows: MainMemoryRows) -> None:
        """Start copying these rows into the pair of device buffers that the current attention leaves free."""
        if self._device is None:
            return
        buffers = self._next_buffers(rows)
        self._wait(self._inward, self._main, self._outward)
        with torch.cuda.stream(self._inward):  # without effect if the stream is None
            for buffer, kept in zip(buffers, rows.tensors, strict=True):
                buffer.copy_(kept, non_blocking=True)
        self._prefetched = (rows, buffers)

    def fetch(self, rows: MainMemoryRows, device: torch.device) -> Pair:
        """The key and the value in a pair of buffers on the device; the current stream waits for the copy."""
        self._use(device)
        if self._prefetched is None or self._prefetched[0] is not rows:
            self.late += 1
            self.prefetch(rows)
        buffers, self._prefetched = self._prefetched[1], None
        self._wait(self._main, self._inward)
        return buffers

    def store(self, rows: MainMemoryRows, buffers: Pair) -> None:
        """Start copying these buffers on the device back to the rows in main memory."""
        self._wait(self._outward, self._main)
        with torch.cuda.stream(self._outward):
            for kept, buffer in zip(rows.tensors, buffers, strict=True):
                kept.copy_(buffer, non_blocking=True)

    def settle(self) -> None:
        """Wait until all copies to main memory have completed."""
        if self._outward is not None:
            self._outward.synchronize()

    @property
    def _main(self) -> torch.cuda.Stream | None:
        return None if self._inward is None else torch.cuda.current_stream(self._device)

    def _use(self, device: torch.device) -> None:
        if self._device is None and device.type == "cuda":
            self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._device = device

    def _wait(self, waiting: torch.cuda.Stream | None, *others: torch.cuda.Stream | None) -> None:
        if waiting is not None:
            for other in others:
                waiting.wait_stream(other)

    def _next_buffers(self, rows: MainMemoryRows) -> Pair:
        """Views, in the shapes of these rows, of the pair of buffers that was not used last; larger buffers
        are allocated if needed.
        """
        self._turn = 1 - self._turn
        memory = self._memory[self._turn]
        if not _have_room(memory, rows.tensors):
            memory = tuple(t.new_empty(t.numel(), device=self._device) for t in rows.tensors)
            for each in memory:
                self._share(each)
            self._memory[self._turn] = memory
        views = zip(memory, rows.tensors, strict=True)
        return tuple(each[: t.numel()].view(t.shape) for each, t in views)

    def _share(self, memory: Tensor) -> None:
        """Tell PyTorch's allocator that the copy streams use this memory. If the memory is freed, the
        allocator then does not reuse it before the copies on these streams have completed.
        """
        for stream in (self._inward, self._outward):
            if stream is not None:
                memory.record_stream(stream)


def empty_in_main_memory(like: Tensor, shape: tuple[int, ...], pinned: bool) -> Tensor:
    """An uninitialised tensor of the dtype of `like` in main memory. If no more memory can be pinned, the
    tensor is in pageable memory, and copies to and from the device are slower.
    """
    if pinned:
        try:
            return torch.empty(shape, dtype=like.dtype, pin_memory=True)
        except RuntimeError:
            pass
    return torch.empty(shape, dtype=like.dtype)


def _have_room(memory: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> bool:
    return len(memory) == len(tensors) and all(
        each.dtype == t.dtype and each.numel() >= t.numel() for each, t in zip(memory, tensors, strict=True)
    )


FORMAT = KVFormat(
    name="cpu",
    rows=MainMemoryRows,
    nbytes=lambda size: size.plain_nbytes,
    text="the K/V cache of {size} is kept in main memory",
    in_main_memory=True,
    transients=2,
    keeps_addresses=False,
    auto_rank=30,
)
