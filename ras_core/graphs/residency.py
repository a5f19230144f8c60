"""Whether weights that ComfyUI's dynamic VRAM may evict are in memory at the addresses that CUDA graphs read.

Under dynamic VRAM a network's large weights live in one address range, reserved for the model's lifetime. A
weight is copied into this range when its layer runs. Any later allocation in the process may evict the
weight; memory is evicted in pages of 32 MiB. Each page has a serial number that changes whenever the page is
remapped, and each layer remembers the serials of the pages that its weights were copied to.

1. `Residency.of` finds these layers and their range, once per run.
2. `prove` compares the serials that each layer remembers with those of its pages. If all match, every weight
   is resident and already patched for this run, because changing a LoRA clears the serials that the layers
   remember. `prove` can succeed only after the network has run once.
3. If `prove` fails, `observed` finds out which of the missing weights an eager call uses. The other missing
   weights belong to layers that do not run in a step (`step_layers`), such as Anima's layers that process the
   text before sampling. The next `prove` does not check such layers.
4. `held` pins the range during a replay and compares the serials of its pages with those that `prove` found.
   A mismatch means that some weight was evicted: the call runs eagerly, which loads the missing weights, and
   `prove` is called again. The same happens if the graph reads a layer that `prove` did not check.
5. `captured` pins and compares in the same way during a capture, in which no layer may call the driver. It
   notes which layers run, and ends the capture if one of them was not checked.

For eager calls, `preset` uses the same checks and pins.

Pages stay pinned during one launch or one call only. This is enough, because an eviction waits for the device
before it unmaps a page. Longer pins would do harm: when memory is short and an allocation fails to evict
pinned pages, ComfyUI lowers this range's watermark and evicts from this range next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from ..errors import NotResident
from .pages import NEEDED, Pages, WeightRange
from .step_layers import StepLayers
from .tensors import parts_of

MAX_MISSES = 4
"""How many checks of a run may find an evicted weight. If one more check finds one, the run stops
checking."""

Prefetch = Callable[[Sequence[nn.Module], torch.device], AbstractContextManager[bool]]
"""Returns a context manager that passes layers their resident weights while its body runs, so that no layer
calls the driver. The context manager yields False if a weight is not resident."""


class Residency:
    """The evictable weights of one network in one run.

    Args:
        pages: the address range that contains all of the weights.
        step: the modules whose weights are in this range, and which of them run in a step.
        device: where the network runs.
        prefetch: gives each layer its resident weights for the duration of a call (see `Prefetch`).

    Attributes:
        layers: the modules that run in a step, whose weights must be resident.
        range: the part of `pages` that holds the weights of `layers`.
        identity: addresses, types and shapes of all weights, to compare between runs.
        misses: number of checks in this run that found a weight evicted.
        read: numbers of the layers whose weights the latest captured call reads.
    """

    def __init__(self, pages: Pages, step: StepLayers, device: torch.device, prefetch: Prefetch):
        self._pages = pages
        self._step = step
        self._device = device
        self._prefetch = prefetch
        self._serials: bytes | None = None
        self._missing: tuple[int, ...] = ()  # layers that the last check did not find resident
        self.identity = (pages.base_addr, *step.forms)
        self.misses = 0
        self.read: frozenset[int] = frozenset()
        self._select()

    @classmethod
    def of(
        cls, layers: Sequence[nn.Module], device: torch.device, prefetch: Prefetch, names: Sequence[str] = ()
    ) -> Residency | None:
        """The weights of these layers; None if they span more than one range or cannot be pinned."""
        ranges = {id(layer._v[0]): layer._v[0] for layer in layers}
        pages = next(iter(ranges.values()), None)
        if len(ranges) != 1 or not all(hasattr(pages, name) for name in NEEDED):
            return None
        return cls(pages, StepLayers(layers, names), device, prefetch)

    def __len__(self) -> int:
        """Number of layers whose weights must be resident."""
        return len(self.layers)

    def share_idle(self, known: dict[int, object]) -> None:
        """Take the idle layers (`StepLayers.idle`) from an earlier run on the same network, and change
        `known` if they turn out to be others.
        """
        self._step.idle = known
        self._select()

    @property
    def is_proved(self) -> bool:
        """Whether the last proof found all weights resident, and no check has found one evicted since."""
        return self._serials is not None

    @property
    def is_hopeless(self) -> bool:
        """Whether weights were evicted so often that checking again in this run is not worth it."""
        return self.misses > MAX_MISSES

    def look(self) -> bool:
        """Whether all weights are resident; checks every layer unless the last proof still holds. To be
        called before each call of the network.
        """
        if not self.is_proved and not self.is_hopeless:
            self.misses += not self.prove()
        return self.is_proved

    def prove(self) -> bool:
        """Check every layer that runs in a step, which takes a few microseconds per layer. Returns whether
        all their weights are resident.
        """
        if self._step.wake():
            self._select()
        with self.range.pinned() as serials:
            running = self._step.running
            evicted = [i for i, layer in running.items() if serials and not self._is_resident(layer)]
        self._missing = tuple(evicted if serials else running)
        self._serials = None if self._missing else serials
        return self.is_proved

    @contextmanager
    def observed(self) -> Iterator[None]:
        """A context manager around an eager call. If the last check found weights missing, layers whose
        weights are missing and that do not run in this call are not checked from then on.
        """
        with self._step.observed(() if self.is_proved else self._missing):
            yield
        if not self.is_proved:
            self._select()

    @property
    def resident(self) -> int:
        """Number of layers whose weights are resident now. Reading this number maps no page to memory, unless
        comfy-aimdo is too old to report which pages are mapped.
        """
        is_mapped = self.range.mapped()
        mapped = [layer for layer in self.layers if hasattr(layer, "_v") and is_mapped(*layer._v[1:])]
        if self.is_proved and len(mapped) == len(self.layers):
            with self.range.pinned() as serials:
                if serials == self._serials:
                    return len(self.layers)
        return sum(map(self._is_resident, mapped))

    @property
    def obstacle(self) -> str | None:
        """Why calls on these weights cannot be captured in this run, according to the last check; or None."""
        if not self.is_proved:
            return self._step.why_missing(self._missing) if self.is_hopeless else None
        for layer in self.layers:
            weights = (layer._v_weight, getattr(layer, "_v_bias", None))
            if any(tensor.device != self._device for each in weights for tensor in parts_of(each)):
                return "scales of quantised weights are kept in main memory"
        return None

    @contextmanager
    def held(self, layers: frozenset[int] = frozenset()) -> Iterator[bool]:
        """A context manager that pins all weights while its body runs, and yields True. If a weight was
        evicted after the last proof (the last time `prove` found all weights resident), or if one of the
        given layers was not checked in this proof, the context manager pins nothing and yields False.

        Args:
            layers: numbers of the layers that the body reads, as in `read`.
        """
        pinned = self._pin_if_whole(layers)
        try:
            yield pinned is not None
        finally:
            if pinned is not None:
                pinned.unpin()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """A context manager for a capture in its body: pins all weights, and lets layers use them without
        calling the driver. Sets `read`.

        Raises:
            NotResident: a weight is not resident before the body runs, or after it has run; or a layer runs
                in the body that was not checked.
        """
        if not self.prove():
            raise NotResident
        read: set[int] = set()
        with self.held() as whole, self.range.kept_from_eviction():
            with self.prefetched(self.layers) as resident:
                if not (whole and resident):
                    raise NotResident
                with self._step.noted(read):
                    yield
        if not self.prove():
            raise NotResident
        self.read = frozenset(read)
        self._step.needed |= read

    def prefetched(self, layers: Sequence[nn.Module]) -> AbstractContextManager[bool]:
        """A context manager that passes these layers their resident weights (see `Prefetch`). It yields True,
        or False if a weight of one of the layers is not resident.
        """
        return self._prefetch(layers, self._device)

    def _select(self) -> None:
        """Use the layers that run in a step, and discard the proof, which was for others."""
        self.layers = tuple(self._step.running.values())
        self.range = WeightRange(self._pages, self._step.parts)
        self._serials = None

    def _pin_if_whole(self, layers: frozenset[int]) -> WeightRange | None:
        """Pin the range and return it, if it holds the weights of these layers, and nothing was evicted since
        the last proof. Otherwise discard the proof.
        """
        if self._serials is None:
            return None
        if not self._step.has_checked(layers):
            self._serials = None
            return None
        serials = self.range.pin()
        if serials == self._serials:
            return self.range
        if serials is not None:
            self.range.unpin()
        self._serials = None
        self.misses += 1
        return None

    def _is_resident(self, layer: nn.Module) -> bool:
        remembered = getattr(layer, "_v_signature", None)
        if remembered is None or getattr(layer, "_v_weight", None) is None:
            return False
        return self.range.serials_of(*layer._v[1:]) == bytes(remembered)


def is_evictable(module: nn.Module, device: torch.device) -> bool:
    """Whether a layer takes its weight from an evictable range when it runs on `device`."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "_v") and weight is not None and weight.device != device
