"""The code that a captured call depends on: the classes of a network's modules, code that replaces functions
of single modules, and the tensors and numbers that this code reads.

A captured CUDA graph stays the same when Python code changes after the capture, for example when a LoRA
replaces a layer's `forward`, a layer is replaced, or a class is patched. So the network's code is compared
with the code at the capture before a graph is reused. Objects that may be large are held by weak references,
which keep no object alive. With a weak reference, a new object at the same address is not mistaken for the
old one.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any
from weakref import ref

from torch import Tensor, nn

from .preset import CAST
from .tensors import address_of

CORE_GRAPH = "_comfy_graph"
"""Attribute in which ComfyUI keeps its own CUDA graph of a module."""

OBSTACLES = {
    "weight_function": "weights are patched at each use",
    "bias_function": "weights are patched at each use",
    CAST: "another pack's layers unpack their weights at each use",
    CORE_GRAPH: "ComfyUI replays graphs of its own in this network",
}
"""Attributes of ComfyUI's layers that prevent a capture if they are set, and why."""

COMPILED = "_compiled_call_impl"
"""Attribute in which torch keeps a module's compiled function, which it then calls instead of the module."""

COMFYUI, TORCH = "comfy.", "torch."
"""Prefixes of the names of ComfyUI's and PyTorch's Python modules. Code of these modules may replace
functions of a layer: it does the same at each call, so calls of the network can still be captured."""

OWNER_CODE = ("_apply_model", "process_timestep", "get_dtype_inference", "manual_cast_dtype")
"""Attributes of ComfyUI's model, which wraps the network, that a captured call uses."""

DEPTH = 4
"""Number of consecutive references that are followed from replacement code to find the tensors that it reads,
for example from a method to its object, then to a hook, then to an adapter, then to a list."""


@dataclass(frozen=True)
class _Kind:
    """What all modules (layers) of one class have in common.

    Attributes:
        code: the functions of the class, of its bases and of the Python files that define these classes.
        obstacles: names in `OBSTACLES` that the class sets.
        own: names of attributes that change what a module does if they are set on the module itself, not on
            its class.
    """

    code: tuple[Hashable, ...]
    obstacles: frozenset[str]
    own: frozenset[str]

    @classmethod
    def of(cls, kind: type) -> _Kind:
        functions = (n for each in kind.__mro__ for n, value in vars(each).items() if callable(value))
        harmless = {CAST} if is_by(kind, COMFYUI, TORCH) else set()
        obstacles = (name for name in OBSTACLES if getattr(kind, name, None))
        own = frozenset([*functions, *OBSTACLES, COMPILED])
        return cls(_class_code(kind), frozenset(obstacles) - harmless, own - harmless)


@dataclass(frozen=True)
class NetworkCode:
    """The code of a network's modules.

    Attributes:
        kinds: what modules of one class have in common, by class.
        replaced: for each function that a single module overrides: the module's index among the modules, the
            function's name, and the code that replaces it.
    """

    kinds: dict[type, _Kind]
    replaced: list[tuple[int, str, Any]]

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> NetworkCode:
        kinds = {kind: _Kind.of(kind) for kind in dict.fromkeys(map(type, modules))}
        overriding = [(i, m) for i, m in enumerate(modules) if not kinds[type(m)].own.isdisjoint(vars(m))]
        return cls(kinds, [(i, *code) for i, m in overriding for code in _replaced_code(m, kinds[type(m)])])

    def obstacle(self, modules: Sequence[nn.Module]) -> str | None:
        """Why calls that run these modules cannot be captured, or None."""
        found = (_module_obstacle(module, self.kinds[type(module)]) for module in modules)
        return next(filter(None, found), None) or _code_obstacle(self.replaced)

    @property
    def identity(self) -> tuple[Hashable, Hashable]:
        """A value that is equal for two networks whose modules run the same code. To code that replaces
        functions of single modules, it holds only weak references.
        """
        return (
            tuple(kind.code for kind in self.kinds.values()),
            tuple((i, name, _reference(code), _read_by(code)) for i, name, code in self.replaced),
        )


def owner_code(owner: object) -> tuple[Hashable, ...]:
    """Code of ComfyUI's model around the network: the functions of its class, and those in `OWNER_CODE` that
    are replaced on this one object.
    """
    own = tuple(_reference(vars(owner).get(name)) for name in OWNER_CODE)
    return own + (_class_code(type(owner)) if isinstance(owner, nn.Module) else ())


def is_by(code: Any, *names: str) -> bool:
    """Whether the name of the Python module that defines this code begins with one of these prefixes."""
    return (getattr(code, "__module__", None) or "").startswith(names)


def _module_obstacle(module: nn.Module, kind: _Kind) -> str | None:
    own = module.__dict__
    if kind.obstacles or not kind.own.isdisjoint(own):
        for name, obstacle in OBSTACLES.items():
            if own.get(name, name in kind.obstacles) and name in kind.own:
                return obstacle
    if module._forward_hooks or module._forward_pre_hooks:
        return "the network's layers have forward hooks from elsewhere"
    return None


def _replaced_code(module: nn.Module, kind: _Kind) -> Iterator[tuple[str, Any]]:
    """Attributes of this one module that override its class's functions (bypass LoRA, object patches)."""
    own = module.__dict__
    for name in own.keys() & kind.own - OBSTACLES.keys():
        if own[name] is not None and not _is_own(module, name, own[name]):
            yield name, own[name]


def _is_own(module: nn.Module, name: str, code: Any) -> bool:
    """Whether `code`, an attribute of the module, is the method of the module's own class, so that it
    replaces nothing. Such an attribute remains if a patch is removed by setting the attribute to the
    original method instead of deleting it.
    """
    return isinstance(code, MethodType) and code.__self__ is module and code.__func__ is getattr(
        type(module), name, None
    )  # fmt: skip


def _class_code(kind: type) -> tuple[Hashable, ...]:
    """The functions of a class and its bases, and those of the Python files that define these classes."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    files = [sys.modules.get(each.__module__) for each in classes if not is_by(each, TORCH)]
    held = [vars(each) for each in (*classes, *filter(None, files))]
    return tuple(value for each in held for value in each.values() if isinstance(value, FunctionType))


def _code_obstacle(replaced: Sequence[tuple[int, str, Any]]) -> str | None:
    """Why code that replaces functions prevents a capture, or None. Code of other packs does, because it may
    do something else at each step, whereas a graph would repeat what the code did during the capture.
    """
    if all(is_by(code, COMFYUI, TORCH) for *_, code in replaced):
        return None
    return "another node's code replaces some of the network's layers"


def _reference(code: Any) -> Hashable:
    if isinstance(code, MethodType):
        return _reference(code.__self__), code.__func__
    try:
        return ref(code)
    except TypeError:  # a number, a string, None: compared by value
        return code


def _read_by(code: Any) -> tuple[Hashable, ...]:
    """The tensors (by address and layout) and numbers (by value) that replacement code of ComfyUI reads."""
    found, pending = [], [code] if is_by(code, COMFYUI) else []
    for _ in range(DEPTH):
        values = [value for each in pending for value in _held_by(each)]
        found += [address_of(each) for each in values if isinstance(each, Tensor)]
        found += [each for each in values if isinstance(each, (bool, int, float))]
        pending = [each for each in values if not isinstance(each, (Tensor, nn.Module))]
    return tuple(found)


def _held_by(each: Any) -> Iterable[Any]:
    if isinstance(each, (list, tuple)):
        return each
    if isinstance(each, MethodType):
        return (each.__self__,)
    return vars(each).values() if hasattr(each, "__dict__") and not isinstance(each, type) else ()
