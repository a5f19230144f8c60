"""Whether weights that ComfyUI may evict (its dynamic VRAM) are resident where CUDA graphs read them.

Under dynamic VRAM a network's large weights live in one address range, reserved for the model's lifetime. A
weight is copied into it when its layer runs; any allocation in the process may evict it again, in pages of
32 MiB. Each page has a serial number that changes whenever the page is remapped, and each layer remembers the
serials of the pages that its weights were copied to.

1. `Residency.of` finds these layers and their range, once per run.
2. `prove` compares the serials that each layer remembers with those of its pages. If all match, every weight
   is resident and patched as this run wants it: changing a LoRA makes layers forget their serials. The
   network must have run once before.
3. `held` pins the range around a replay and compares its serials with those of the proof. A mismatch means
   that something was evicted: the call runs eagerly, which loads what is missing, and a new proof follows.
4. `captured` does the same around a capture, during which no layer may call the driver.
5. `preset` spares an eager call the driver calls of each layer, with the same proof and pin.

Pins last for one launch or one call only. That is enough, because eviction waits for the device before it
unmaps a page. They must not last longer, because an allocation that meets pinned pages while memory is short
makes ComfyUI evict from this range next (its watermark drops).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import NotResident

MAX_MISSES = 4
"""How often a run may find weights evicted before it stops checking."""

PAGE = 2**25
"""Bytes per page."""

SMALL = 2**16
"""Bytes; tensors up to this size are concatenated and compared in one operation."""

Prefetch = Callable[[Sequence[nn.Module], torch.device], AbstractContextManager[bool]]
"""Hands layers their resident weights for the body, so that none calls the driver; yields False if one is not
resident."""

Exchange = tuple[dict[str, Any], str, Any]
"""A dictionary, one of its keys, and the value to store there temporarily."""


class Pages(Protocol):
    """A model's evictable address range; the interface of comfy-aimdo's ModelVBAR."""

    base_addr: int

    def fault(self, address: int, nbytes: int) -> Any | None:
        """Pin this part of the range, mapping the pages that are missing. Returns the serials of its pages,
        or None if memory is short.
        """

    def unpin(self, address: int, nbytes: int) -> None:
        """Undo one `fault` of the same part."""

    def set_watermark_limit(self, nbytes: int) -> None:
        """Never evict below this offset; 0 lifts the limit."""

    def get_watermark(self) -> int:
        """How many pages, counted from the start, ComfyUI means to keep."""

    def prioritize(self) -> None:
        """Evict from this range last, and keep all its pages if possible."""


class Residency:
    """The evictable weights of one network in one run.

    Args:
        pages: the range that holds all of them.
        layers: the modules whose weights are in it.
        device: where the network runs.
        prefetch: hands layers their weights before they are used.
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
        """None if these layers span more than one range, or their range cannot be pinned."""
        ranges = {id(layer._v[0]): layer._v[0] for layer in layers}
        pages = next(iter(ranges.values()), None)
        if len(ranges) != 1 or not all(hasattr(pages, name) for name in _NEEDED):
            return None
        return cls(pages, tuple(layers), device, prefetch)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def is_proved(self) -> bool:
        """Whether the last proof found all weights resident, and no check has found one evicted since."""
        return self._serials is not None

    @property
    def is_hopeless(self) -> bool:
        """Whether weights were evicted so often that checking again in this run is not worth it."""
        return self.misses > MAX_MISSES

    def look(self) -> bool:
        """Whether all weights are resident, as far as is known. Call it before each call of the network."""
        if not self.is_proved and not self.is_hopeless:
            self.misses += not self.prove()
        return self.is_proved

    def prove(self) -> bool:
        """Check every layer; takes a few microseconds per layer."""
        with self._pinned() as serials:
            whole = serials is not None and all(map(self._is_resident, self._layers))
        self._serials = serials if whole else None
        return whole

    @property
    def resident(self) -> int:
        """How many layers have resident weights now."""
        with self._pinned() as serials:
            return 0 if serials is None else sum(map(self._is_resident, self._layers))

    @property
    def obstacle(self) -> str | None:
        """Why these weights cannot be captured although they are resident, or None; valid after a proof."""
        for layer in self._layers:
            weights = (layer._v_weight, getattr(layer, "_v_bias", None))
            if any(tensor.device != self._device for each in weights for tensor in _parts(each)):
                return "scales of quantised weights are kept in main memory"
        return None

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Pin all weights for the body. Yields False, and voids the proof, if one was evicted since."""
        whole = self._pin_if_whole()
        try:
            yield whole
        finally:
            if whole:
                self._pages.unpin(*self._range)

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Pin all weights for a capture in the body, and let layers use them without calling the driver.

        Raises:
            NotResident: not all weights are resident before the body, or after it.
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
    def preset(self) -> Iterator[None]:
        """For an eager call in the body: if all weights are resident, layers use them without the driver."""
        if not self._may_preset or not self.look():
            yield
            return
        if not self._pin_if_whole():
            yield  # with nothing pinned: this call has to load what is missing
            return
        try:
            with exchanged(self._presets()):
                yield
        finally:
            self._look_for_pressure()  # before unpinning, which frees pages above the watermark
            self._pages.unpin(*self._range)

    def _presets(self) -> list[Exchange]:
        """What makes layers use their resident weights. A layer that casts nothing gets them as its own
        parameters, as without dynamic VRAM; any other gets what ComfyUI would prefetch for it.
        """
        plain = [layer for layer in self._layers if _is_plain(layer)]
        presets = [each for layer in plain for each in _as_own(layer)]
        if len(plain) == len(self._layers):
            return presets
        others = [layer for layer in self._layers if not _is_plain(layer)]
        with self._prefetch(others[:1], self._device) as resident:
            form = dict(getattr(others[0], PREFETCH)) if resident else {}
        if form.keys() != {"signature", "resident"}:
            self._may_preset = False  # a later ComfyUI prefetches in a form that is unknown here
            return []
        return presets + [
            (layer.__dict__, PREFETCH, {**form, "signature": layer._v_signature}) for layer in others
        ]

    def _look_for_pressure(self) -> None:
        """Preset no more in this run if an allocation ran into the pinned pages."""
        if self._pages.get_watermark() * PAGE < sum(self._range) - self._pages.base_addr:
            self._may_preset = False
            self._pages.prioritize()

    @contextmanager
    def _pinned(self) -> Iterator[bytes | None]:
        serials = self._fault()
        try:
            yield serials
        finally:
            if serials is not None:
                self._pages.unpin(*self._range)

    def _fault(self) -> bytes | None:
        """Pin the range; None, and nothing pinned, if memory is short or the driver refuses."""
        try:
            serials = self._pages.fault(*self._range)
        except RuntimeError:
            return None
        return None if serials is None else bytes(serials)

    def _pin_if_whole(self) -> bool:
        """Pin the range if nothing was evicted since the proof; otherwise the proof no longer holds."""
        serials = self._fault()
        if serials is not None and serials == self._serials:
            return True
        if serials is not None:
            self._pages.unpin(*self._range)
        self._serials = None
        self.misses += 1
        return False

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
        """Prevent eviction during a capture: evicting waits for the device, which would invalidate it."""
        end = self._range[0] + self._range[1] - self._pages.base_addr
        self._pages.set_watermark_limit(-(-end // PAGE) * PAGE)
        try:
            yield
        finally:
            self._pages.set_watermark_limit(0)


CAST = "comfy_cast_weights"
"""Attribute that makes a ComfyUI layer fetch its weights at each use."""

PREFETCH = "_prefetch"
"""Attribute in which ComfyUI hands a layer its weights before it runs."""

_NEEDED = ("base_addr", "fault", "unpin", "set_watermark_limit", "get_watermark", "prioritize")


@contextmanager
def exchanged(exchanges: Sequence[Exchange]) -> Iterator[None]:
    """Swap these values in for the body, then restore the old ones."""
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


_NOTHING = object()


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer's class casts nothing, so that only dynamic VRAM makes it fetch its weights."""
    weights = (layer._v_weight, getattr(layer, "_v_bias", None))
    return getattr(type(layer), CAST, True) is False and all(type(t) in (Tensor, type(None)) for t in weights)


def _as_own(layer: nn.Module) -> list[Exchange]:
    weights = {"weight": layer._v_weight, "bias": getattr(layer, "_v_bias", None)}
    own = [(layer._parameters, name, t) for name, t in weights.items() if t is not None]
    return [(layer.__dict__, CAST, False), *own]


class EvictableWeights:
    """The evictable weights of all networks that one run calls.

    Args:
        prefetch: hands layers their weights before they are used.
    """

    def __init__(self, prefetch: Prefetch):
        self._prefetch = prefetch
        self._known: dict[nn.Module, Residency | None] = {}

    def of(self, network: nn.Module, device: torch.device) -> Residency | None:
        """Those of one network; None if it has none, or they cannot be pinned."""
        if network not in self._known:
            layers = [module for module in network.modules() if is_evictable(module, device)]
            self._known[network] = Residency.of(layers, device, self._prefetch)
        return self._known[network]

    def preset(self, network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
        """As `Residency.preset`, for an eager call of the network in the body."""
        weights = self.of(network, device)
        return nullcontext() if weights is None else weights.preset()


def is_evictable(module: nn.Module, device: torch.device) -> bool:
    """Whether a layer takes its weight from an evictable range when it runs on `device`."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "_v") and weight is not None and weight.device != device


def same_contents(known: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors on one device hold the same bytes; synchronizes with the device once."""
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
    """A module's own weights and buffers; a quantised one as the tensors that it consists of."""
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
    """The weight itself, or the tensors that a quantised one consists of."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if isinstance(weight, Tensor) and flatten is not None:
        for name in flatten()[0]:
            yield getattr(weight, name)
    elif isinstance(weight, Tensor):
        yield weight
