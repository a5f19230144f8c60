"""Whether weights that ComfyUI may evict (its dynamic VRAM) stand where CUDA graphs read them.

With dynamic VRAM a network's large weights live in one range of addresses, reserved for the model's life. A
weight is copied there when its layer runs; any allocation of the process may evict pages of 32 MiB again.
Each page has a serial that changes when it is mapped anew, and each layer remembers the serials of the pages
that it was copied to.

1. `Residency.of` finds these layers and their range, once a run.
2. `prove` compares what each layer remembers with the pages' serials. All equal means that every weight is
   in place, patched as this run wants it: a changed LoRA makes layers forget. A call has to come first.
3. `held` pins the range around a replay and compares its serials with those of the proof. One that differs
   means that something was evicted: that call runs eagerly, which loads what is missing; a new proof follows.
4. `captured` does the same around a capture, in which no layer may call the driver.
5. `given` spares an eager call the driver calls of each layer, by the same two steps.

Pins are held for a launch or a call only: eviction waits for the device before it unmaps a page, and an
allocation that meets pinned pages where memory is short makes ComfyUI treat the range as the next to evict
(its watermark falls).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import NotResident

MAX_MISSES = 4
"""Of a run: how often weights may be found evicted before it stops looking."""

PAGE = 2**25
"""Bytes of a page."""

SMALL = 2**16
"""Bytes; tensors up to this size are compared in one operation."""

Prefetch = Callable[[Sequence[nn.Module], torch.device], AbstractContextManager[bool]]
"""Gives layers their resident weights for the body, so that none asks the driver; false: one is not resident.
"""


Exchange = tuple[dict[str, Any], str, Any]
"""A dictionary, one of its keys, and the value that it gets for a while."""


class Pages(Protocol):
    """A model's range of evictable addresses, as comfy-aimdo's ModelVBAR has it."""

    base_addr: int

    def fault(self, address: int, nbytes: int) -> Any | None:
        """Pin this part of the range, and map what is missing of it; returns the serials of its pages, or
        None where memory is short.
        """

    def unpin(self, address: int, nbytes: int) -> None:
        """Undo one `fault` of the same part."""

    def set_watermark_limit(self, nbytes: int) -> None:
        """Nothing below this offset is evicted; 0 lifts the limit."""

    def get_watermark(self) -> int:
        """Pages from the beginning that ComfyUI means to keep."""

    def prioritize(self) -> None:
        """Evict from this range last, and keep all of its pages if possible."""


class Residency:
    """The evictable weights of one network in one run.

    Args:
        pages: the range that all of them are in.
        layers: modules with a part of it.
        device: where the network runs.
        prefetch: gives layers their weights ahead of their use.
    """

    def __init__(self, pages: Pages, layers: tuple[nn.Module, ...], device: torch.device, prefetch: Prefetch):
        self._prefetch = prefetch
        self._pages = pages
        self._layers = layers
        self._device = device
        parts = [layer._v[1:] for layer in layers]
        low = min(address for address, _ in parts)
        self._range = low, max(address + nbytes for address, nbytes in parts) - low
        self._serials: bytes | None = None
        self._may_preset = True
        self.identity = (pages.base_addr, *parts, *map(_form, layers))
        self.misses = 0

    @classmethod
    def of(cls, layers: Sequence[nn.Module], device: torch.device, prefetch: Prefetch) -> Residency | None:
        """None where these layers are in more than one range, or in one that cannot be pinned."""
        ranges = {id(layer._v[0]): layer._v[0] for layer in layers}
        pages = next(iter(ranges.values()), None)
        if len(ranges) != 1 or not all(hasattr(pages, name) for name in _NEEDED):
            return None
        return cls(pages, tuple(layers), device, prefetch)

    def __len__(self) -> int:
        """How many layers."""
        return len(self._layers)

    @property
    def is_proved(self) -> bool:
        """Whether all weights were in place at the last look, and none was found evicted since."""
        return self._serials is not None

    @property
    def is_hopeless(self) -> bool:
        """Whether weights were evicted so often that it is not worth another look in this run."""
        return self.misses > MAX_MISSES

    def look(self) -> bool:
        """Whether all weights are in place, as far as is known; before a call."""
        if not self.is_proved and not self.is_hopeless:
            self.misses += not self.prove()
        return self.is_proved

    def prove(self) -> bool:
        """Look at every layer: some microseconds each."""
        with self._pinned() as serials:
            whole = serials is not None and all(map(self._is_resident, self._layers))
        self._serials = serials if whole else None
        return whole

    @property
    def resident(self) -> int:
        """How many layers have their weights in place now."""
        with self._pinned() as serials:
            return 0 if serials is None else sum(map(self._is_resident, self._layers))

    @property
    def obstacle(self) -> str | None:
        """Why these weights cannot be recorded although they are in place, or None; known after a proof."""
        for layer in self._layers:
            weights = (layer._v_weight, getattr(layer, "_v_bias", None))
            if any(tensor.device != self._device for each in weights for tensor in _parts(each)):
                return "scales of quantised weights are kept in main memory"
        return None

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Pin all weights for the body. False: one was evicted since the proof, which no longer holds."""
        with self._pinned() as serials:
            whole = serials is not None and serials == self._serials
            if not whole:
                self._serials = None
                self.misses += 1
            yield whole

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Pin all weights for a capture in the body, and have each layer take its own without the driver.

        Raises:
            NotResident: they are not all in place, before or after the body.
        """
        if not self.prove():
            raise NotResident
        with self.held() as whole, self._kept_from_eviction():
            with self._prefetch(self._layers, self._device) as resident:
                if not (whole and resident):
                    raise NotResident
                yield
        if not self.prove():
            raise NotResident

    @contextmanager
    def given(self) -> Iterator[None]:
        """Have each layer take its weights without the driver in an eager call, if all are in place."""
        if not self._may_preset or not self.look():
            yield
            return
        with self.held() as whole, exchanged(self._gifts() if whole else []):
            yield
        self._look_for_pressure()

    def _gifts(self) -> list[Exchange]:
        """What has layers use their weights where they are. Those that cast nothing get them in the place of
        their own, as they have them without dynamic VRAM; the others what ComfyUI would prefetch for them.
        """
        plain = [layer for layer in self._layers if _is_plain(layer)]
        gifts = [each for layer in plain for each in _as_own(layer)]
        if len(plain) == len(self._layers):
            return gifts
        others = [layer for layer in self._layers if not _is_plain(layer)]
        with self._prefetch(others[:1], self._device) as resident:
            form = dict(getattr(others[0], PREFETCH)) if resident else {}
        if form.keys() != {"signature", "resident"}:
            self._may_preset = False  # a later form, which this one does not know
            return []
        return gifts + [
            (layer.__dict__, PREFETCH, {**form, "signature": layer._v_signature}) for layer in others
        ]

    def _look_for_pressure(self) -> None:
        """Somebody needed memory while all was pinned: that must not happen again in this run."""
        if self._pages.get_watermark() * PAGE < sum(self._range) - self._pages.base_addr:
            self._may_preset = False
            self._pages.prioritize()

    @contextmanager
    def _pinned(self) -> Iterator[bytes | None]:
        serials = self._pages.fault(*self._range)
        try:
            yield None if serials is None else bytes(serials)
        finally:
            if serials is not None:
                self._pages.unpin(*self._range)

    def _is_resident(self, layer: nn.Module) -> bool:
        remembered = getattr(layer, "_v_signature", None)
        if remembered is None or getattr(layer, "_v_weight", None) is None:
            return False
        _, address, nbytes = layer._v
        serials = self._pages.fault(address, nbytes)
        if serials is None:
            return False
        self._pages.unpin(address, nbytes)
        return bytes(serials) == bytes(remembered)

    @contextmanager
    def _kept_from_eviction(self) -> Iterator[None]:
        """An eviction waits for the device, which a capture must not."""
        end = self._range[0] + self._range[1] - self._pages.base_addr
        self._pages.set_watermark_limit(-(-end // PAGE) * PAGE)
        try:
            yield
        finally:
            self._pages.set_watermark_limit(0)


CAST = "comfy_cast_weights"
"""Attribute with which ComfyUI has a layer fetch its weights at each use."""

PREFETCH = "_prefetch"
"""Attribute in which ComfyUI gives a layer weights ahead of its use."""

_NEEDED = ("base_addr", "fault", "unpin", "set_watermark_limit", "get_watermark", "prioritize")


@contextmanager
def exchanged(exchanges: Sequence[Exchange]) -> Iterator[None]:
    """These dictionaries with other values for the body."""
    before = [(held, name, held.get(name, _NOTHING)) for held, name, _ in exchanges]
    for held, name, value in exchanges:
        held[name] = value
    try:
        yield
    finally:
        for held, name, value in before:
            if value is _NOTHING:
                held.pop(name, None)
            else:
                held[name] = value


_NOTHING = object()


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer's class casts nothing: only dynamic VRAM has this one fetch its weights."""
    weights = (layer._v_weight, getattr(layer, "_v_bias", None))
    return getattr(type(layer), CAST, True) is False and all(type(t) in (Tensor, type(None)) for t in weights)


def _as_own(layer: nn.Module) -> list[Exchange]:
    weights = {"weight": layer._v_weight, "bias": getattr(layer, "_v_bias", None)}
    own = [(layer._parameters, name, t) for name, t in weights.items() if t is not None]
    return [(layer.__dict__, CAST, False), *own]


class EvictableWeights:
    """Those of all networks that one run calls.

    Args:
        prefetch: gives layers their weights ahead of their use.
    """

    def __init__(self, prefetch: Prefetch):
        self._prefetch = prefetch
        self._known: dict[nn.Module, Residency | None] = {}

    def of(self, network: nn.Module, device: torch.device) -> Residency | None:
        """None where it has none, or they cannot be pinned."""
        if network not in self._known:
            layers = [module for module in network.modules() if is_evictable(module, device)]
            self._known[network] = Residency.of(layers, device, self._prefetch)
        return self._known[network]

    def given(self, network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
        """For an eager call of the network in the body."""
        weights = self.of(network, device)
        return nullcontext() if weights is None else weights.given()


def is_evictable(module: nn.Module, device: torch.device) -> bool:
    """Whether a layer takes its weight from such a range when it runs on `device`."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "_v") and weight is not None and weight.device != device


def same_contents(known: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors on one device hold the same bytes; reads the device once."""
    if [_layout(t) for t in known] != [_layout(t) for t in given]:
        return False
    pairs = [(a, b) for a, b in zip(known, given, strict=True) if a.data_ptr() != b.data_ptr()]
    small = [pair for pair in pairs if pair[0].nbytes <= SMALL]
    large = [pair for pair in pairs if pair[0].nbytes > SMALL]
    differences = [(_bytes(a) != _bytes(b)).any() for a, b in large]
    if small:
        mine, theirs = (torch.cat([_bytes(pair[side]) for pair in small]) for side in (0, 1))
        differences.append((mine != theirs).any())
    return not differences or not bool(torch.stack(differences).any())


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's own weights and buffers; of quantised ones the tensors that they consist of."""
    for each in (*module._parameters.values(), *module._buffers.values()):
        yield from _parts(each)


def _layout(t: Tensor) -> tuple:
    return t.shape, t.dtype, t.device, t.stride()


def _bytes(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(-1).view(torch.uint8)


def _form(layer: nn.Module) -> tuple:
    weight = layer.weight
    return type(weight), tuple(weight.shape), weight.dtype, getattr(weight, "_model_dtype", None)


def _parts(weight: Any) -> Iterator[Tensor]:
    """A weight, or the tensors that a quantised one consists of."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if isinstance(weight, Tensor) and flatten is not None:
        for name in flatten()[0]:
            yield getattr(weight, name)
    elif isinstance(weight, Tensor):
        yield weight
