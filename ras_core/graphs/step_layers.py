"""Which of a network's layers with evictable weights run in a sampling step; all others are called idle.

Layers are numbered in their order in the network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import NotResident
from .layer_uses import loads_noted, reads_noted

MAX_NAMES = 3
"""How many layers a message names."""


class StepLayers:
    """The layers of one network in one run.

    A layer is taken to run in a step unless `observed` has found otherwise.

    Args:
        layers: the modules, in the order of the network.
        names: their names, for messages.

    Attributes:
        all: all layers, by number.
        idle: numbers of the idle layers. The values are what these layers remembered of their pages when they
            were found to be idle. A layer that has loaded its weights since remembers something else, and is
            no longer idle after the next `wake`.
        needed: numbers of the layers that the run's captured calls read. These are never idle.
        unused: numbers of the layers whose weights were missing in the last observed call, and that did not
            run in it.
    """

    def __init__(self, layers: Sequence[nn.Module], names: Sequence[str] = ()):
        self._names = dict(enumerate(names))
        self._parts = {i: layer._v[1:] for i, layer in enumerate(layers)}
        self.all = dict(enumerate(layers))
        self.idle: dict[int, object] = {}
        self.needed: set[int] = set()
        self.unused: frozenset[int] = frozenset()

    @property
    def forms(self) -> tuple[tuple, ...]:
        """Addresses, types and shapes of the weights of all layers."""
        return tuple((*self._parts[i], *_form(layer.weight)) for i, layer in self.all.items())

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Address and size in bytes of the weights of each layer that runs in a step."""
        return [self._parts[i] for i in self.running]

    @property
    def running(self) -> dict[int, nn.Module]:
        """The layers that run in a step, by number."""
        return {i: layer for i, layer in self.all.items() if i not in self.idle}

    def wake(self) -> bool:
        """Count the layers as running that are needed or have loaded their weights since they were found to
        be idle. Returns whether there were any.
        """
        woken = [
            i for i, known in self.idle.items() if i in self.needed or _serials(self.all[i]) is not known
        ]
        for i in woken:
            del self.idle[i]
        return bool(woken)

    @contextmanager
    def observed(self, missing: Collection[int]) -> Iterator[None]:
        """A context manager around an eager call: those of the layers `missing` that do not run in the call
        are idle afterwards, unless they are needed.
        """
        if not missing:
            yield
            return
        used: set[int] = set()
        with loads_noted(self._pick(missing), used.add):
            yield
        self.unused = frozenset(missing) - used
        found = self.unused - self.needed
        if len(self.idle.keys() | found) < len(self.all):
            self.idle.update((i, _serials(self.all[i])) for i in found)

    @contextmanager
    def noted(self, read: set[int]) -> Iterator[None]:
        """A context manager around a capture of a call with prefetched weights: adds the layers that run to
        `read`.

        Raises:
            NotResident: an idle layer runs, so the graph would read weights that may be evicted unnoticed.
        """

        def stop(i: int) -> None:
            self.needed.add(i)
            raise NotResident

        with reads_noted(self._pick(self.running), read), loads_noted(self._pick(self.idle), stop):
            yield

    def has_checked(self, read: frozenset[int]) -> bool:
        """Whether a check of the running layers included all layers that a graph reads. From now on, every
        check includes them.
        """
        self.needed |= read
        return read.isdisjoint(self.idle)

    def why_missing(self, missing: Collection[int]) -> str:
        """Why the weights of these running layers are not resident, for a message."""
        if not missing or not self.unused.issuperset(missing):
            return "there is too little GPU memory to keep all weights resident"
        names = [self._names.get(i, str(i)) for i in sorted(missing)]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return f"no call has loaded the weights of {', '.join(names[:MAX_NAMES])}{more}"

    def _pick(self, numbers: Iterable[int]) -> dict[int, nn.Module]:
        return {i: self.all[i] for i in numbers if hasattr(self.all[i], "_v")}


def _serials(layer: nn.Module) -> object:
    """What a layer remembers of the pages that its weights were copied to."""
    return getattr(layer, "_v_signature", None)


def _form(weight: Tensor) -> tuple:
    return type(weight), tuple(weight.shape), weight.dtype, getattr(weight, "_model_dtype", None)
