"""Stand-ins for CUDA graphs ("tapes"), which work on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from ras_pack.ras_core.graphs.store import GraphStore
from ras_pack.ras_core.graphs.tape import Around
from ras_pack.ras_core.host.names import GRAPHS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

Work = Callable[[], None]


class AgainTape:
    """A tape whose replay runs the captured Python function again, on the same buffers with new contents.

    As on a GPU, a tape must not be used until everything launched on it has been waited for.

    Attributes:
        captured, replayed: numbers of captures and replays.
        launched: number of replays in parallel with other work.
        waiting: launched replays that nothing has waited for yet.
    """

    def __init__(self):
        self.captured = self.replayed = self.launched = self.waiting = 0

    def capture(self, work: Work, around: Around = nullcontext) -> Work:
        assert not self.waiting
        self.captured += 1
        with around():
            repeat = self.once(work)

        def replay() -> None:
            assert not self.waiting
            self.replayed += 1
            repeat()

        return replay

    def once(self, work: Work) -> Work:
        """Run the work, and return a function that repeats it."""
        work()
        return work

    def launch(self, replay: Work) -> Work:
        """Run the replay at once. Returns a function that waits for it, which has nothing left to do."""
        replay()
        self.launched += 1
        self.waiting += 1
        return self._waited_for

    def _waited_for(self) -> None:
        self.waiting -= 1


class LateTape(AgainTape):
    """A tape that runs a launched replay as late as possible: only when something waits for it."""

    def launch(self, replay: Work) -> Work:
        waited_for = super().launch(lambda: None)

        def wait() -> None:
            waited_for()
            replay()

        return wait


class FrozenTape(AgainTape):
    """A tape that repeats the captured tensor operations on the same memory without running Python again, as
    a CUDA graph does. So a replay ignores whatever has changed in Python since the capture: code, networks,
    addresses of weights, and numbers.

    As in a capture, Python must not read a tensor's value.
    """

    def once(self, work: Work) -> Work:
        with _Log() as log:
            work()
        return log.repeat


class FrozenLateTape(LateTape, FrozenTape):
    """A frozen tape that runs a launched replay only when something waits for it."""


class BrokenTape(AgainTape):
    """A tape that raises an error at every capture."""

    def capture(self, work: Work, around: Around = nullcontext) -> Work:
        raise RuntimeError("planted")


class FailingTape(AgainTape):
    """A tape that runs the work once, as happens before a capture, and then raises an error. It fails
    `failures` times in total.

    Attributes:
        failures: remaining number of failures.
        error: the exception to raise.
    """

    failures = 1
    error: BaseException = RuntimeError("planted after the work")

    def once(self, work: Work) -> Work:
        work()
        if self.failures:
            self.failures -= 1
            raise self.error
        return work


class Tapes:
    """Creates tapes of one class, and adds up the numbers of captures and replays of all these tapes."""

    def __init__(self, kind: Callable[[], AgainTape] = AgainTape):
        self._kind = kind
        self._made: list[AgainTape] = []

    def __call__(self, number: int = 0) -> AgainTape:
        self._made.append(self._kind())
        return self._made[-1]

    def __getattr__(self, count: str) -> int:
        return sum(getattr(tape, count) for tape in self._made)


def capture_on(model: Any, tape: Any) -> GraphStore:
    """Make runs of this model capture on this tape, or on tapes that the function `tape` creates from a
    number. Returns the model's store.
    """
    store = GraphStore(tape if callable(tape) else lambda number: tape)
    setattr(model.model, GRAPHS, store)
    return store


@dataclass(frozen=True)
class _Operation:
    """One operation, and the memory that it read and wrote.

    Attributes:
        results: the first run's output tensors, with their index among the function's outputs. Views of
            the inputs are not included: they see what is written there.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    results: tuple[tuple[int, Tensor], ...]

    def repeat(self) -> None:
        found, _ = tree_flatten(self.function(*self.args, **self.kwargs))
        for i, result in self.results:
            result.copy_(found[i])


class _Log(TorchDispatchMode):
    """Logs each operation that allocates or changes memory."""

    READS_VALUES = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[_Operation] = []

    @torch.inference_mode()
    def repeat(self) -> None:
        for operation in self._operations:
            operation.repeat()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in self.READS_VALUES:
            raise RuntimeError(f"{name} reads a value, which no capture can wait for")
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        known = _memory((args, kwargs))
        results = tuple(
            (i, _alias(each))
            for i, each in enumerate(tree_flatten(found)[0])
            if isinstance(each, Tensor) and _address(each) not in known
        )
        if results or function._schema.is_mutable:
            frozen_args, frozen_kwargs = tree_map(_alias, (args, kwargs))
            self._operations.append(_Operation(function, frozen_args, frozen_kwargs, results))
        return found


def _alias(value: Any) -> Any:
    """Another tensor on the same memory, which stays valid if the data of the first are swapped later."""
    return value.detach() if isinstance(value, Tensor) else value


def _memory(values: Any) -> set[int]:
    return {_address(each) for each in _tensors(values)}


def _tensors(values: Any) -> Iterable[Tensor]:
    return (each for each in tree_flatten(values)[0] if isinstance(each, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
