"""Count the CPU work of a piece of code: operations, allocations, Python calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Counts:
    """How many operations and calls a piece of code makes, in total or on average per step.

    Attributes:
        operations: number of PyTorch operations that the dispatcher passes to the device, views included.
        views: number of operations that only reinterpret memory and need no kernel and no allocation.
        allocations: number of operations that allocate memory for their result.
        functions: number of calls to Python functions.
        builtins: number of calls from Python to functions in C.
    """

    operations: float = 0
    views: float = 0
    allocations: float = 0
    functions: float = 0
    builtins: float = 0

    @property
    def kernels(self) -> float:
        """Number of operations that launch work on the device."""
        return self.operations - self.views

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __mul__(self, number: float) -> Counts:
        return Counts(*(getattr(self, f.name) * number for f in fields(self)))

    def __truediv__(self, number: float) -> Counts:
        return Counts(*(getattr(self, f.name) / number for f in fields(self)))


@dataclass
class OperationCounter(TorchDispatchMode):
    """Counts the PyTorch operations of this thread inside a with statement.

    Attributes:
        by_name: number of calls of each operation.
    """

    operations: int = 0
    views: int = 0
    allocations: int = 0
    by_name: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        is_new = any(_memory(t) not in given for t in tree_leaves(result) if isinstance(t, Tensor))
        self.operations += 1
        self.allocations += is_new
        self.views += not is_new and not func._schema.is_mutable
        self.by_name[str(func)] += 1
        return result

    @property
    def counts(self) -> Counts:
        return Counts(self.operations, self.views, self.allocations)


@contextmanager
def counted_functions() -> Iterator[Counter[str]]:
    """Count the calls to Python functions ("call") and to functions in C ("c_call") inside a with
    statement.
    """
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        found[event] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata
