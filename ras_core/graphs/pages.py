"""The memory pages of a model's evictable weights: maps and pins these pages. Each page has a serial number
that changes whenever the page is remapped; from the serial numbers, `residency` detects evictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

PAGE = 2**25
"""Bytes per page of a model's evictable address range (32 MiB)."""

MAPPED = 1
"""Bit in a page's state (`Pages.get_residency`) that is set if the page is mapped to device memory."""

NEEDED = ("base_addr", "fault", "unpin", "set_watermark_limit", "get_watermark", "prioritize")
"""Attributes that an object must have to be used as `Pages`."""


class Pages(Protocol):
    """A model's evictable address range. This class describes the interface of the class ModelVBAR in
    comfy-aimdo, the allocator that ComfyUI uses for dynamic VRAM, i.e. for weights that it may evict.

    Attributes:
        base_addr: start address of the range.
    """

    base_addr: int

    def fault(self, address: int, nbytes: int) -> Any | None:
        """Pin this part of the range, after mapping pages that are not mapped. Returns the serials of its
        pages, or None if memory is short.
        """

    def unpin(self, address: int, nbytes: int) -> None:
        """Release one pin that `fault` has put on the same part."""

    def set_watermark_limit(self, nbytes: int) -> None:
        """Evict no page in the first `nbytes` bytes of the range; 0 removes this limit."""

    def get_watermark(self) -> int:
        """The watermark: number of pages, counted from the start of the range, that ComfyUI intends to keep
        mapped. Evictions lower it, but not below the limit that `set_watermark_limit` sets.
        """

    def get_residency(self) -> Sequence[int]:
        """The state of each page, as bit flags (see `MAPPED`). Older versions of comfy-aimdo do not have this
        method.
        """

    def prioritize(self) -> None:
        """Make this range the last from which pages are evicted, and keep all its pages if possible."""


class WeightRange:
    """The pages of a model's address range that contain the weights of some of its layers.

    Args:
        pages: the model's whole address range.
        parts: address and size in bytes of each layer's weights.
    """

    def __init__(self, pages: Pages, parts: Sequence[tuple[int, int]]):
        self._pages = pages
        self._spans = _joined(parts, pages.base_addr)

    def pin(self) -> bytes | None:
        """Pin all of these pages. Returns their serials. If memory is short or the driver refuses, this pins
        nothing and returns None.
        """
        found: list[bytes] = []
        for span in self._spans:
            serials = self._fault(*span)
            if serials is None:
                for pinned in self._spans[: len(found)]:
                    self._pages.unpin(*pinned)
                return None
            found.append(serials)
        return b"".join(found)

    def unpin(self) -> None:
        """Release one successful `pin`."""
        for span in self._spans:
            self._pages.unpin(*span)

    @contextmanager
    def pinned(self) -> Iterator[bytes | None]:
        """A context manager that pins all pages while its body runs; yields what `pin` returns."""
        serials = self.pin()
        try:
            yield serials
        finally:
            if serials is not None:
                self.unpin()

    def serials_of(self, address: int, nbytes: int) -> bytes | None:
        """Serials of the pages of one layer's weights; None if they are not mapped and memory is short, or if
        the driver refuses.
        """
        serials = self._fault(address, nbytes)
        if serials is not None:
            self._pages.unpin(address, nbytes)
        return serials

    def mapped(self) -> Callable[[int, int], bool]:
        """A function that takes the address and size of one layer's weights, and returns whether all their
        pages are mapped now. Older versions of comfy-aimdo do not report this; the function then always
        returns True.
        """
        if not hasattr(self._pages, "get_residency"):
            return lambda address, nbytes: True
        states, base = self._pages.get_residency(), self._pages.base_addr

        def is_mapped(address: int, nbytes: int) -> bool:
            first, last = (address - base) // PAGE, (address - base + nbytes - 1) // PAGE
            return all(state & MAPPED for state in states[first : last + 1])

        return is_mapped

    @contextmanager
    def kept_from_eviction(self) -> Iterator[None]:
        """A context manager that prevents eviction from these pages during a capture in its body. An eviction
        would wait for the device, and this would invalidate the capture.
        """
        self._pages.set_watermark_limit(-(-self._end // PAGE) * PAGE)
        try:
            yield
        finally:
            self._pages.set_watermark_limit(0)

    def resist_eviction(self) -> bool:
        """After an allocation that tried to evict pinned pages, ComfyUI evicts from this range next. This
        function makes this range the last one to evict from again. It must be called while the pages are
        still pinned. Returns whether an allocation tried to evict them.
        """
        is_under_pressure = self._pages.get_watermark() * PAGE < self._end
        if is_under_pressure:
            self._pages.prioritize()
        return is_under_pressure

    def _fault(self, address: int, nbytes: int) -> bytes | None:
        try:
            serials = self._pages.fault(address, nbytes)
        except RuntimeError:
            return None
        return None if serials is None else bytes(serials)

    @property
    def _end(self) -> int:
        """Offset of the weights' end from the start of the whole range, in bytes."""
        address, nbytes = self._spans[-1]
        return address + nbytes - self._pages.base_addr


def _joined(parts: Sequence[tuple[int, int]], base: int) -> list[tuple[int, int]]:
    """Address and size in bytes of each span of `parts`, in order. A page with only other weights lies
    between two spans.
    """
    spans: list[list[int]] = []  # start and end of each
    for address, nbytes in sorted(parts):
        end = address + nbytes
        if spans and (address - base) // PAGE <= (spans[-1][1] - base - 1) // PAGE + 1:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([address, end])
    return [(start, end - start) for start, end in spans]
