"""Forms in which the keys and values of one attention are kept: as they are, as float8, or in main memory.

Whatever the form, what is kept are tensors with the axes (bb, rows) first, so that rows are cut and joined in
one way for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..rows import Pair, Places, RowWriter, scatter_into
from .arena import Arena, copies
from .float8_format import EXPONENT, FLOAT8, SCALE_OF_POWER, SMALLEST_SCALE
from .triton_launch import fused_for


@dataclass
class Sequence:
    """K and V of one attention, (bb, prefix + n + suffix, ...) each, kept as they are.

    Attributes:
        tensors: what is kept, (bb, prefix + n + suffix, ...) each.
        prefix, suffix: rows of text before and of padding after the image rows.
    """

    tensors: tuple[Tensor, ...]
    prefix: int
    suffix: int
    _writers: tuple[RowWriter, ...] = field(default=(), init=False, repr=False, compare=False)
    _by_head: Pair | None = field(default=None, init=False, repr=False, compare=False)
    storage: ClassVar[str] = "gpu"
    """The setting of `kv_cache` that keeps rows in this form."""
    is_fetched: ClassVar[bool] = False
    """Whether `prefetch` does anything."""

    @classmethod
    def of(cls, key: Tensor, value: Tensor, prefix: int, suffix: int, arena: Arena | None = None) -> Sequence:
        """Keep the K/V of a dense call: (bb, r, ...) each, copied, since the host owns its tensors."""
        return cls(copies((key, value), arena), prefix, suffix)

    @property
    def key(self) -> Tensor:
        return self.tensors[0]

    @property
    def value(self) -> Tensor:
        return self.tensors[1]

    def takes(self, key: Tensor, value: Tensor, prefix: int) -> bool:
        """Whether a dense call's K/V can be written over what is kept."""
        return self.prefix == prefix and _alike(self.key, key) and _alike(self.value, value)

    def write(self, key: Tensor, value: Tensor) -> None:
        """A dense call's K/V over everything kept."""
        self.key.copy_(key)
        self.value.copy_(value)

    def update(self, places: Places, fresh: Pair) -> Pair:
        """Keep fresh rows, (bb, r_kept, ...) each, and give the whole K and V with them."""
        if torch.compiler.is_compiling():  # which follows no exception of an unfit view
            for kept, rows in zip(self.tensors, fresh, strict=True):
                scatter_into(kept, places.flat, rows)
            return self.key, self.value
        key, value = self._writers or self._make_writers()
        key.put(places.flat, fresh[0])
        value.put(places.flat, fresh[1])
        return self.tensors

    def heads_first(self, whole: Pair) -> Pair:
        """The result of `update` or `update_ahead` as views with heads before rows: (bb, heads, rows, e)."""
        if whole[0] is not self.tensors[0]:
            return whole[0].transpose(1, 2), whole[1].transpose(1, 2)
        if self._by_head is None:
            self._by_head = whole[0].transpose(1, 2), whole[1].transpose(1, 2)
        return self._by_head

    def read(self) -> Pair:
        """The whole K and V."""
        return self.key, self.value

    def prefetch(self) -> None:
        """`update` comes next."""

    def forget(self) -> None:
        """Another run begins: no memory of how rows have changed."""

    def chunk(self, part: int, parts: int) -> Sequence:
        """The rows of one branch (a view)."""
        size = self.tensors[0].shape[0] // parts
        rows = slice(part * size, (part + 1) * size)
        return replace(self, tensors=tuple(t[rows] for t in self.tensors))

    def image_only(self) -> Sequence:
        """Without text and padding rows (a view)."""
        rows = slice(self.prefix, self.tensors[0].shape[1] - self.suffix)
        return replace(self, tensors=tuple(t[:, rows] for t in self.tensors), prefix=0, suffix=0)

    def with_borders(self, prefix: int, suffix: int) -> Sequence:
        """The same image rows with room for other numbers of text and padding rows (a copy)."""
        self._settle()
        framed = tuple(self._framed(t, prefix, suffix) for t in self.image_only().tensors)
        return replace(self, tensors=framed, prefix=prefix, suffix=suffix)

    def joined(self, others: Series[Sequence]) -> Sequence:
        """This one's rows and those of others of its form, along bb; text rows are dropped where their
        numbers differ, since every call writes them anew.
        """
        if not others:
            return self
        parts = [self, *others]
        if len({(part.prefix, part.suffix) for part in parts}) > 1:
            parts = [part.image_only() for part in parts]
        self._settle()
        columns = zip(*(part.tensors for part in parts), strict=True)
        whole = tuple(self._cat(column) for column in columns)
        return replace(self, tensors=whole, prefix=parts[0].prefix, suffix=parts[0].suffix)

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    def _make_writers(self) -> tuple[RowWriter, ...]:
        """One for each of `tensors`, made on first use."""
        self._writers = tuple(map(RowWriter, self.tensors))
        return self._writers

    def _put(self, number: int, places: Places, fresh: Tensor) -> None:
        """Write fresh rows into the `number`th of `tensors`."""
        if torch.compiler.is_compiling():
            scatter_into(self.tensors[number], places.flat, fresh)
        else:
            (self._writers or self._make_writers())[number].put(places.flat, fresh)

    def _framed(self, rows: Tensor, prefix: int, suffix: int) -> Tensor:
        framed = self._empty(rows, (rows.shape[0], prefix + rows.shape[1] + suffix, *rows.shape[2:]))
        framed[:, prefix : prefix + rows.shape[1]] = rows
        return framed

    def _cat(self, parts: Series[Tensor]) -> Tensor:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return torch.cat(list(parts), out=self._empty(parts[0], shape))

    def _empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return like.new_empty(shape)

    def _settle(self) -> None:
        """Wait until what is kept has arrived where it is kept."""


@dataclass
class Float8Sequence(Sequence):
    """K and V as float8_e4m3fn, with one scale for each row of each: half the bytes of float16.

    The format's error is relative, 2.65 % RMS on the demo models' keys and values, whatever the scale: one a
    tensor gives the same, one a head 2.4 to 2.5 %. One a row costs two bytes a row and needs no rule for rows
    that are written later. Scales are powers of two, so that they add no rounding of their own. Fresh rows
    are attended to as they are; only what a later step reads has gone through float8.

    `tensors` are bytes of the key, its scales (bb, r) in the key's own dtype, and the same of the value.
    """

    storage: ClassVar[str] = "fp8"

    @classmethod
    def of(
        cls, key: Tensor, value: Tensor, prefix: int, suffix: int, arena: Arena | None = None
    ) -> Float8Sequence:
        return cls(copies((*_to_float8(key), *_to_float8(value)), arena), prefix, suffix)

    @property
    def value(self) -> Tensor:
        return self.tensors[2]

    def takes(self, key: Tensor, value: Tensor, prefix: int) -> bool:
        kept = zip(self.tensors[::2], self.tensors[1::2], (key, value), strict=True)
        return self.prefix == prefix and all(
            codes.shape == t.shape and codes.device == t.device and scales.dtype == t.dtype
            for codes, scales, t in kept
        )

    def write(self, key: Tensor, value: Tensor) -> None:
        fused = fused_for(key, value)
        if fused is not None:
            fused.encode_float8(key, *self.tensors[:2])
            fused.encode_float8(value, *self.tensors[2:])
            return
        for kept, new in zip(self.tensors, (*_to_float8(key), *_to_float8(value)), strict=True):
            kept.copy_(new)

    def update(self, places: Places, fresh: Pair) -> Pair:
        fused = fused_for(*fresh)
        if fused is not None:
            return fused.update_float8(self.tensors, places, fresh)
        memory = places.scratch
        whole = tuple(
            _from_float8(*self.tensors[2 * i : 2 * i + 2], memory.empty(i, self.tensors[2 * i], rows.dtype))
            for i, rows in enumerate(fresh)
        )
        for number, new in enumerate((*_to_float8(fresh[0]), *_to_float8(fresh[1]))):
            self._put(number, places, new)
        for t, rows in zip(whole, fresh, strict=True):
            scatter_into(t, places.flat, rows)
        return whole

    def read(self) -> Pair:
        return _from_float8(*self.tensors[:2]), _from_float8(*self.tensors[2:])


@dataclass
class HostSequence(Sequence):
    """K and V in main memory, pinned if the device is a GPU. An offloader copies them to the device and back.

    The offloader belongs to the run. What is kept is exact.
    """

    offloader: Offloader
    storage: ClassVar[str] = "cpu"
    is_fetched: ClassVar[bool] = True

    @classmethod
    def of(
        cls, key: Tensor, value: Tensor, prefix: int, suffix: int, *, offloader: Offloader
    ) -> HostSequence:
        empty = tuple(host_empty(t, t.shape, pinned=t.device.type == "cuda") for t in (key, value))
        kept = cls(empty, prefix, suffix, offloader)
        kept.write(key, value)
        return kept

    def takes(self, key: Tensor, value: Tensor, prefix: int) -> bool:
        return self.prefix == prefix and all(
            kept.shape == t.shape and kept.dtype == t.dtype
            for kept, t in zip(self.tensors, (key, value), strict=True)
        )

    def write(self, key: Tensor, value: Tensor) -> None:
        place = self.offloader.place(self, key.device)
        for here, new in zip(place, (key, value), strict=True):
            here.copy_(new)
        self.offloader.store(self, place)

    def update(self, places: Places, fresh: Pair) -> Pair:
        place = self.offloader.fetch(self, fresh[0].device)
        for here, rows in zip(place, fresh, strict=True):
            scatter_into(here, places.flat, rows)
        self.offloader.store(self, place)
        return place

    def read(self) -> Pair:
        self._settle()
        return self.key, self.value

    def prefetch(self) -> None:
        self.offloader.prefetch(self)

    def _empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return host_empty(like, shape, pinned=like.is_pinned())

    def _settle(self) -> None:
        self.offloader.settle()


class Offloader:
    """Moves sequences between main memory and two places on the device, beside the device's own work.

    While an attention reads one place, the next sequence comes into the other; all waiting is the device's,
    on streams, and never this program's. Whole sequences go back, not only their fresh rows: both ways of the
    bus are busy at once, and scattering rows in main memory would make the program wait for the device.

    Attributes:
        late: how many sequences were asked for that were not under way already.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, ...]] = [(), ()]
        self._turn = 0
        self._coming: tuple[HostSequence, Pair] | None = None
        self._device: torch.device | None = None
        self._inward = self._outward = None  # streams
        self.late = 0

    def place(self, sequence: HostSequence, device: torch.device) -> Pair:
        """Room for a sequence on the device, free for the device's main work to write into."""
        self._coming = None  # what is under way may be what is about to be written
        self._stand_on(device)
        self._wait(self._main, self._inward, self._outward)
        return self._next_place(sequence)

    def prefetch(self, sequence: HostSequence) -> None:
        """Start bringing a sequence into the place that the device's work enqueued so far leaves free."""
        if self._device is None:
            return
        place = self._next_place(sequence)
        self._wait(self._inward, self._main, self._outward)
        with torch.cuda.stream(self._inward):  # nothing without a stream
            for here, kept in zip(place, sequence.tensors, strict=True):
                here.copy_(kept, non_blocking=True)
        self._coming = (sequence, place)

    def fetch(self, sequence: HostSequence, device: torch.device) -> Pair:
        """The sequence on the device, as the device's main work will see it."""
        self._stand_on(device)
        if self._coming is None or self._coming[0] is not sequence:
            self.late += 1
            self.prefetch(sequence)
        place, self._coming = self._coming[1], None
        self._wait(self._main, self._inward)
        return place

    def store(self, sequence: HostSequence, place: Pair) -> None:
        """Take a place's content back to where the sequence is kept."""
        self._wait(self._outward, self._main)
        with torch.cuda.stream(self._outward):
            for kept, here in zip(sequence.tensors, place, strict=True):
                kept.copy_(here, non_blocking=True)

    def settle(self) -> None:
        """Wait until all that was stored has arrived."""
        if self._outward is not None:
            self._outward.synchronize()

    @property
    def _main(self) -> torch.cuda.Stream | None:
        return None if self._inward is None else torch.cuda.current_stream(self._device)

    def _stand_on(self, device: torch.device) -> None:
        if self._device is None and device.type == "cuda":
            self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._device = device

    def _wait(self, waiting: torch.cuda.Stream | None, *others: torch.cuda.Stream | None) -> None:
        if waiting is not None:
            for other in others:
                waiting.wait_stream(other)

    def _next_place(self, sequence: HostSequence) -> Pair:
        """The place whose turn it is: views of buffers that grow as needed."""
        self._turn = 1 - self._turn
        buffers = self._buffers[self._turn]
        if not _have_room(buffers, sequence.tensors):
            buffers = tuple(t.new_empty(t.numel(), device=self._device) for t in sequence.tensors)
            for buffer in buffers:
                self._share(buffer)
            self._buffers[self._turn] = buffers
        views = zip(buffers, sequence.tensors, strict=True)
        return tuple(buffer[: t.numel()].view(t.shape) for buffer, t in views)

    def _share(self, buffer: Tensor) -> None:
        """Whenever the buffer goes, it is not given to others before the streams are through with it."""
        for stream in (self._inward, self._outward):
            if stream is not None:
                buffer.record_stream(stream)


Keep = Callable[..., Sequence]
"""Keeps the key and value of a dense call, (bb, r, ...) each, given the rows of text and of padding; and
where it keeps them on the device: `arena=`, the memory for all that the call keeps."""


def has_float8(device: torch.device) -> bool:
    """Whether the device turns numbers into float8 and back."""
    try:
        return float(torch.ones(1, device=device).to(FLOAT8).float()) == 1.0
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _to_float8(rows: Tensor) -> Pair:  # (bb, r, ...) -> bytes (bb, r, ...), scales (bb, r)
    fused = fused_for(rows, rows)
    if fused is not None:
        codes, scales = rows.new_empty(rows.shape, dtype=torch.uint8), rows.new_empty(rows.shape[:2])
        fused.encode_float8(rows, codes, scales)
        return codes, scales
    flat = rows.flatten(2)
    largest = torch.linalg.vector_norm(flat, torch.inf, dim=2, dtype=torch.float32)
    largest.view(torch.int32).bitwise_and_(EXPONENT)  # now a power of two, at most the largest
    scales = largest.mul_(SCALE_OF_POWER).clamp_min_(SMALLEST_SCALE).to(rows.dtype)
    codes = (flat / scales[..., None]).to(FLOAT8)
    # Cutting, joining and scattering are defined for bytes everywhere, for float8 not.
    return codes.view(torch.uint8).view(rows.shape), scales


def _from_float8(codes: Tensor, scales: Tensor, rows: Tensor | None = None) -> Tensor:
    """Undo `_to_float8`, writing into `rows` if given."""
    numbers = codes.view(FLOAT8)
    rows = numbers.to(scales.dtype) if rows is None else rows.copy_(numbers)
    rows.flatten(2).mul_(scales[..., None])
    return rows


def host_empty(like: Tensor, shape: tuple[int, ...], pinned: bool) -> Tensor:
    """Main memory; where no more of it can be pinned, plain, which is slower and right all the same."""
    if pinned:
        try:
            return torch.empty(shape, dtype=like.dtype, pin_memory=True)
        except RuntimeError:
            pass
    return torch.empty(shape, dtype=like.dtype)


def _have_room(buffers: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> bool:
    return len(buffers) == len(tensors) and all(
        buffer.dtype == t.dtype and buffer.numel() >= t.numel()
        for buffer, t in zip(buffers, tensors, strict=True)
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
