"""What a captured call depends on: the addresses of the network's weights, and the code that ran on them.

A CUDA graph repeats what the device did. It misses whatever Python would do differently by now: a LoRA that
replaces a layer's `forward`, an exchanged layer, a patched class. So all of that is compared before a graph
is reused. Objects that may be large are referenced weakly: nothing is kept alive, and a new object at the
same address is not mistaken for the old one.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from .residency import Residency, is_evictable, same_contents, tensors_of

CORE_GRAPH = "_comfy_graph"
"""Attribute in which ComfyUI keeps its own CUDA graph of a module."""

CAST = "comfy_cast_weights"
"""Attribute that makes a layer cast its weights at each use. If the weights are on the device, ComfyUI's own
layers cast them with ordinary operations; those of other packs (GGUF) may fetch them from anywhere."""

OBSTACLES = {
    "weight_function": "weights are patched at each use",
    "bias_function": "weights are patched at each use",
    CAST: "another pack's layers unpack their weights at each use",
    CORE_GRAPH: "ComfyUI replays graphs of its own in this network",
}
"""Attributes of ComfyUI's layers, and what it means for one to be set."""

COMPILED = "_compiled_call_impl"
"""Attribute in which torch keeps the compiled function that it calls instead of a module."""

HOST, TORCH = "comfy.", "torch."
"""Prefixes of modules whose code, when it replaces a layer's, does the same at each call."""

OWNER_CODE = ("_apply_model", "process_timestep", "get_dtype_inference", "manual_cast_dtype")
"""Attributes of ComfyUI's model, which wraps the network, that take part in a captured call."""

DEPTH = 4
"""How many references lead from replaced code to the tensors that it reads: method, hook, adapter, list."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network as its modules describe it, read once per run.

    Attributes:
        addresses: of all weights and buffers, with dtype, shape and strides; a graph reads exactly these.
        obstacle: why nothing can be captured, or None.
        sampling: ComfyUI's object that turns noise levels into times; it is part of a captured call.
        code: what else a captured call depends on: modules, their classes, and code that replaces theirs.
        device: where the network is called.
        loose: under dynamic VRAM, the tensors that are not evictable. They are small, and ComfyUI makes new
            ones for each run; a graph reads those of the run that it was captured in.
        residency: the weights that ComfyUI may evict; None if there are none (no dynamic VRAM).
    """

    addresses: tuple[Hashable, ...]
    obstacle: str | None = None
    sampling: object = None
    code: tuple[Hashable, ...] = ()
    device: torch.device | None = None
    loose: tuple[Tensor, ...] = ()
    residency: Residency | None = None

    def matches(self, other: Network) -> bool:
        """Whether a graph captured on one may be replayed on the other."""
        is_same = self.sampling is other.sampling and self.code == other.code
        return is_same and self.addresses == other.addresses and same_contents(self.loose, other.loose)

    @property
    def to_keep(self) -> Network:
        """A copy for comparison with later runs; it keeps no layer alive."""
        return replace(self, residency=None)


def inspect(
    network: nn.Module,
    device: torch.device,
    sampling: object = None,
    owner: object = None,
    residency: Residency | None = None,
) -> Network:
    """Describe a network in its present state.

    Args:
        network: ComfyUI's network.
        device: where calls run.
        sampling: ComfyUI's object that turns noise levels into times.
        owner: ComfyUI's model, which wraps the network.
        residency: its evictable weights, if they can be pinned.
    """
    modules = _modules(network)
    evictable = [module for module in modules if is_evictable(module, device)]
    moving = set(evictable)
    others = [*(each for each in modules if each not in moving), *_modules_of(sampling)]
    tensors = tuple(tensor for module in others for tensor in tensors_of(module))
    run = [*modules, *_modules_of(sampling)]
    kinds = {kind: _Kind.of(kind) for kind in dict.fromkeys(map(type, run))}
    marked = [(i, each) for i, each in enumerate(run) if not kinds[type(each)].own.isdisjoint(vars(each))]
    replaced = [(i, *code) for i, each in marked for code in _replaced_code(each, kinds[type(each)])]
    if (evictable and residency is None) or any(tensor.device != device for tensor in tensors):
        obstacle = "not all weights are on the device (low memory)"
    else:
        found = (_module_obstacle(module, kinds[type(module)]) for module in modules)
        obstacle = next(filter(None, found), None) or _code_obstacle(replaced) or _kind_obstacle(tensors)
    code = (
        tuple(map(ref, modules)),
        tuple(map(type, modules)),
        tuple(kind.code for kind in kinds.values()),
        tuple((number, name, _reference(each), _read_by(each)) for number, name, each in replaced),
        _owner_code(owner) if owner is not None else (),
    )
    if residency is None:
        return Network(tuple(map(_form, tensors)), obstacle, sampling, code, device)
    return Network(residency.identity, obstacle, sampling, code, device, tensors, residency)


def _owner_code(owner: object) -> tuple[Hashable, ...]:
    """Code of ComfyUI's model around the network: of its class, and what replaces it on this one."""
    own = tuple(_reference(vars(owner).get(name)) for name in OWNER_CODE)
    return own + (_class_code(type(owner)) if isinstance(owner, nn.Module) else ())


def _modules(network: nn.Module) -> list[nn.Module]:
    """Each module once, in order. `nn.Module.modules` is slower: it builds all their names."""
    found, pending = {}, [network]
    while pending:
        module = pending.pop()
        if module not in found:
            found[module] = None
            pending += [each for each in reversed(module._modules.values()) if each is not None]
    return list(found)


def _modules_of(sampling: object) -> list[nn.Module]:
    """ComfyUI's noise schedules are modules with buffers."""
    return _modules(sampling) if isinstance(sampling, nn.Module) else []


def _form(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@dataclass(frozen=True)
class _Kind:
    """What modules of one class have in common.

    Attributes:
        code: the functions of the class and of the file that defines it.
        marks: names in `OBSTACLES` that the class sets.
        own: names that matter if a single module overrides them with an attribute of its own.
    """

    code: tuple[Hashable, ...]
    marks: frozenset[str]
    own: frozenset[str]

    @classmethod
    def of(cls, kind: type) -> _Kind:
        functions = (n for each in kind.__mro__ for n, value in vars(each).items() if callable(value))
        harmless = {CAST} if _is_by(kind, HOST, TORCH) else set()
        marks = (name for name in OBSTACLES if getattr(kind, name, None))
        own = frozenset([*functions, *OBSTACLES, COMPILED])
        return cls(_class_code(kind), frozenset(marks) - harmless, own - harmless)


def _module_obstacle(module: nn.Module, kind: _Kind) -> str | None:
    own = module.__dict__
    if kind.marks or not kind.own.isdisjoint(own):
        for name, obstacle in OBSTACLES.items():
            if own.get(name, name in kind.marks) and name in kind.own:
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
    """Whether this is the class's own function, as a patch leaves it behind when it is removed."""
    return isinstance(code, MethodType) and code.__self__ is module and code.__func__ is getattr(
        type(module), name, None
    )  # fmt: skip


def _class_code(kind: type) -> tuple[Hashable, ...]:
    """The functions of a class and its bases, and those of the files that define them."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    files = [sys.modules.get(each.__module__) for each in classes if not _is_by(each, TORCH)]
    held = [vars(each) for each in (*classes, *filter(None, files))]
    return tuple(value for each in held for value in each.values() if isinstance(value, FunctionType))


def _code_obstacle(replaced: Sequence[tuple[int, str, Any]]) -> str | None:
    """Other code may do something else at each step; a graph would repeat what it did when captured."""
    if all(_is_by(code, HOST, TORCH) for *_, code in replaced):
        return None
    return "another node's code replaces some of the network's layers"


def _kind_obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Tensor classes of other packs (GGUF's) run code at each use that a graph would miss."""
    strange = next((type(t) for t in tensors if not _is_by(type(t), HOST, "torch")), None)
    return strange and f"weights are of an unknown kind ({strange.__name__})"


def _is_by(code: Any, *names: str) -> bool:
    return (getattr(code, "__module__", None) or "").startswith(names)


def _reference(code: Any) -> Hashable:
    if isinstance(code, MethodType):
        return _reference(code.__self__), code.__func__
    try:
        return ref(code)
    except TypeError:  # a number, a string, None: compared by value
        return code


def _read_by(code: Any) -> tuple[Hashable, ...]:
    """What ComfyUI's replacement code reads: tensors, by address and layout, and numbers."""
    found, pending = [], [code] if _is_by(code, HOST) else []
    for _ in range(DEPTH):
        values = [value for each in pending for value in _held_by(each)]
        found += [_form(each) for each in values if isinstance(each, Tensor)]
        found += [each for each in values if isinstance(each, (bool, int, float))]
        pending = [each for each in values if not isinstance(each, (Tensor, nn.Module))]
    return tuple(found)


def _held_by(each: Any) -> Iterable[Any]:
    if isinstance(each, (list, tuple)):
        return each
    if isinstance(each, MethodType):
        return (each.__self__,)
    return vars(each).values() if hasattr(each, "__dict__") and not isinstance(each, type) else ()
