"""Notices which layers of a network fetch their evictable weights (`residency`) in a call.

Not every layer of a network runs in a sampling step: Anima, for example, has layers that process the text
before sampling. ComfyUI loads the weights of a layer only when the layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

PREFETCH = "_prefetch"
"""Attribute in which ComfyUI passes a layer its weights before the layer runs."""

Exchange = tuple[dict[str, Any], str, Any]
"""A dictionary, one of its keys, and the value to store there temporarily."""

_NOTHING = object()


@contextmanager
def exchanged(exchanges: Sequence[Exchange]) -> Iterator[None]:
    """Store the value of each exchange (see `Exchange`) while the body runs, then restore what was stored
    before.
    """
    before = [(held, name, held.get(name, _NOTHING)) for held, name, _ in exchanges]
    try:
        for held, name, value in exchanges:
            held[name] = value
        yield
    finally:
        for held, name, value in before:
            if value is _NOTHING:
                held.pop(name, None)
            else:
                held[name] = value


@contextmanager
def loads_noted(layers: Mapping[int, nn.Module], note: Callable[[int], None]) -> Iterator[None]:
    """While the body runs, call `note` with the key of a layer before the layer asks for the pages of its
    weights, which it does at each use unless its weights were prefetched. An exception that `note` raises
    ends the forward of the layer.
    """
    with exchanged(
        [
            (layer.__dict__, "_v", (_NotedPages(layer._v[0], key, note), *layer._v[1:]))
            for key, layer in layers.items()
        ]
    ):
        yield


@contextmanager
def reads_noted(layers: Mapping[int, nn.Module], read: set[int]) -> Iterator[None]:
    """While the body runs, add the key of each layer that uses its prefetched weights to `read`."""
    with exchanged(
        [
            (layer.__dict__, PREFETCH, _NotedPrefetch(layer.__dict__[PREFETCH], key, read))
            for key, layer in layers.items()
        ]
    ):
        yield


class _NotedPages:
    """The address range of one layer's weights; it calls `note` before it maps pages."""

    def __init__(self, pages: Any, key: int, note: Callable[[int], None]):
        self._pages, self._key, self._note = pages, key, note

    def fault(self, address: int, nbytes: int) -> Any | None:
        self._note(self._key)
        return self._pages.fault(address, nbytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pages, name)


class _NotedPrefetch(dict):
    """What ComfyUI stores in a layer with prefetched weights; it notes that it was read."""

    def __init__(self, prefetched: Mapping[str, Any], key: int, read: set[int]):
        super().__init__(prefetched)
        self._key, self._read = key, read

    def __getitem__(self, name: str) -> Any:
        self._read.add(self._key)
        return super().__getitem__(name)
