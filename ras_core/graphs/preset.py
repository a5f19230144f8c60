"""Passes layers their resident weights before an eager call, so that no layer calls the driver to find out
whether its weights are resident (`residency`).

Dynamic VRAM is ComfyUI's mode in which any allocation may evict weights from device memory. In this mode, a
layer fetches its weights at each use: it asks the driver whether they are resident, and loads them if not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .layer_uses import PREFETCH, Exchange, exchanged
from .residency import Prefetch, Residency, is_evictable

CAST = "comfy_cast_weights"
"""Attribute that makes a ComfyUI layer fetch and cast its weights at each use."""


class PresetWeights:
    """Passes a network's layers their resident weights, during one run."""

    def __init__(self, residency: Residency):
        self._residency = residency
        self._is_usable = True

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context manager around an eager call: if all weights are resident, layers use them without
        calling the driver. Otherwise, this finds out which of the missing weights the call uses.
        """
        if not self._is_usable or not self._residency.look():
            with self._residency.observed():
                yield
            return
        with self._residency.held() as whole:
            if not whole:
                yield  # nothing is pinned, because this call must load the missing weights
                return
            try:
                with exchanged(self._exchanges()):
                    yield
            finally:
                # Called before the pages are unpinned, because unpinning frees pages above the watermark.
                self._is_usable &= not self._residency.range.resist_eviction()

    def _exchanges(self) -> list[Exchange]:
        """Values to store in layers so that they use their resident weights. A layer that need not cast its
        weights gets them as its parameters, as it does from ComfyUI without dynamic VRAM. Any other layer
        gets the dictionary that ComfyUI's prefetch stores in a layer with resident weights: the serial
        numbers of the weights' pages, and the flag that the weights are resident.
        """
        layers = self._residency.layers
        plain = [layer for layer in layers if _is_plain(layer)]
        presets = [each for layer in plain for each in _as_own(layer)]
        if len(plain) == len(layers):
            return presets
        others = [layer for layer in layers if not _is_plain(layer)]
        with self._residency.prefetched(others[:1]) as resident:
            form = dict(getattr(others[0], PREFETCH)) if resident else {}
        if form.keys() != {"signature", "resident"}:
            self._is_usable = False  # a newer ComfyUI prefetches in a format unknown to this code
            return []
        return presets + [
            (layer.__dict__, PREFETCH, {**form, "signature": layer._v_signature}) for layer in others
        ]


class EvictableWeights:
    """The evictable weights of all networks that one run calls.

    Args:
        prefetch: passes layers their resident weights before the layers run (`residency.Prefetch`).
    """

    def __init__(self, prefetch: Prefetch):
        self._prefetch = prefetch
        self._known: dict[nn.Module, Residency | None] = {}
        self._presets: dict[Residency, PresetWeights] = {}

    def of(self, network: nn.Module, device: torch.device) -> Residency | None:
        """The evictable weights of one network; None if it has none, or they cannot be pinned."""
        if network not in self._known:
            found = {name: each for name, each in network.named_modules() if is_evictable(each, device)}
            self._known[network] = Residency.of([*found.values()], device, self._prefetch, [*found])
        return self._known[network]

    def preset(self, network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
        """A context manager around an eager call of a network (`PresetWeights.applied`)."""
        residency = self.of(network, device)
        if residency is None:
            return nullcontext()
        if residency not in self._presets:
            self._presets[residency] = PresetWeights(residency)
        return self._presets[residency].applied()


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer can use its resident weights as its parameters: its class does not cast weights, i.e.
    convert them at each use, and the weights are plain tensors. Such a layer fetches its weights only because
    dynamic VRAM may have evicted them.
    """
    weights = (layer._v_weight, getattr(layer, "_v_bias", None))
    return getattr(type(layer), CAST, True) is False and all(type(t) in (Tensor, type(None)) for t in weights)


def _as_own(layer: nn.Module) -> list[Exchange]:
    weights = {"weight": layer._v_weight, "bias": getattr(layer, "_v_bias", None)}
    own = [(layer._parameters, name, t) for name, t in weights.items() if t is not None]
    return [(layer.__dict__, CAST, False), *own]
