"""Stand-ins for ComfyUI's evictable weights (comfy-aimdo's ModelVBAR and the layers on it), on any device."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

PAGE = 2**25


class FakePages:
    """A range of pages that behaves like comfy-aimdo's: a page's serial changes when it is remapped.

    Attributes:
        pins: how often each page is pinned.
        limit: the watermark limit in bytes.
        is_full: no more pages can be mapped.
    """

    def __init__(self, n_pages: int = 4, base_addr: int = 7 * PAGE):
        self.base_addr = base_addr
        self.serials = [0] * n_pages  # 0: not mapped
        self.pins = [0] * n_pages
        self.limit = 0
        self.is_full = False
        self.watermark = n_pages
        self._next = 1

    def fault(self, address: int, nbytes: int) -> list[int] | None:
        pages = self._pages(address, nbytes)
        if pages.stop > self.watermark or (self.is_full and any(self.serials[page] == 0 for page in pages)):
            return None
        for page in pages:
            if self.serials[page] == 0:
                self.serials[page], self._next = self._next, self._next + 1
            self.pins[page] += 1
        return memoryview(torch.tensor([self.serials[page] for page in pages], dtype=torch.int32).numpy())

    def unpin(self, address: int, nbytes: int) -> None:
        for page in self._pages(address, nbytes):
            self.pins[page] -= 1
            assert self.pins[page] >= 0, "unpinned more often than pinned"
            if not self.pins[page] and page >= self.watermark:
                self.serials[page] = 0

    def set_watermark_limit(self, nbytes: int) -> None:
        self.limit = nbytes

    def get_watermark(self) -> int:
        return self.watermark

    def get_residency(self) -> list[int]:
        return [(serial != 0) + 2 * (pins > 0) for serial, pins in zip(self.serials, self.pins, strict=True)]

    def prioritize(self) -> None:
        self.watermark = len(self.serials)

    def evict(self, page: int) -> bool:
        """Evict a page, as any allocation may, unless it is pinned or below the limit."""
        if (page + 1) * PAGE <= self.limit:
            return False
        self.watermark = min(self.watermark, page)
        if self.pins[page]:
            return False
        self.serials[page] = 0
        return True

    def _pages(self, address: int, nbytes: int) -> range:
        first = address - self.base_addr
        return range(first // PAGE, -(-(first + nbytes) // PAGE))


def layer_on(pages: FakePages, offset: int, nbytes: int = 1024, kind: type = nn.Linear) -> nn.Module:
    """A layer whose weight is in main memory until it is used."""
    layer = kind(4, 4, device="meta").requires_grad_(False)
    layer._v = (pages, pages.base_addr + offset, nbytes)
    layer._v_signature = None
    return layer


def use(layer: nn.Module, device: torch.device | str = "cpu") -> None:
    """Do what ComfyUI does when a layer runs: copy the weight to the device if it is not resident."""
    pages, address, nbytes = layer._v
    serials = pages.fault(address, nbytes)
    if serials is None:
        layer._v_signature = None
        return
    if layer._v_signature is None or bytes(layer._v_signature) != bytes(serials):
        layer._v_weight, layer._v_bias = torch.zeros(4, 4, device=device), None
        layer._v_signature = serials
    pages.unpin(address, nbytes)


@contextmanager
def prefetch(layers, device):
    """A stand-in for ComfyUI's function that pins and prefetches the weights of layers. Yields whether all
    weights were resident.
    """
    for layer in layers:
        pages, address, nbytes = layer._v
        serials = pages.fault(address, nbytes)
        layer._prefetch = {"signature": serials, "resident": bytes(serials) == bytes(layer._v_signature)}
    try:
        yield all(layer._prefetch["resident"] for layer in layers)
    finally:
        for layer in layers:
            del layer._prefetch
            pages, address, nbytes = layer._v
            pages.unpin(address, nbytes)
