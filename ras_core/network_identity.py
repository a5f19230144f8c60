"""What a recorded call has read of its network: where weights stood, and which code ran on them.

A recording repeats what the device did. Whatever Python would do otherwise by now, a LoRA that replaces a
layer's `forward`, an exchanged layer, a patched class, passes it by; so all of that is compared before one is
used again. References are weak where what they point to may be large: no identity is taken over by another
object at the same address, and nothing is kept alive.
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
"""Attribute in which ComfyUI keeps a graph of its own for a module."""

CAST = "comfy_cast_weights"
"""Attribute that makes a layer cast its weights at each use. ComfyUI's own layers do so by operations like
any others, where the weights are on the device; those of other packs (GGUF) may fetch them from anywhere."""

OBSTACLES = {
    "weight_function": "weights are patched at each use",
    "bias_function": "weights are patched at each use",
    CAST: "another pack's layers unpack their weights at each use",
    CORE_GRAPH: "ComfyUI replays graphs of its own in this network",
}
"""Attributes of ComfyUI's layers, and what it means that one is set."""

COMPILED = "_compiled_call_impl"
"""Attribute in which torch keeps what it calls in a module's place."""

HOST, TORCH = "comfy.", "torch."
"""Beginnings of the names of files whose code in a layer's place does the same at each call."""

OWNER_CODE = ("_apply_model", "process_timestep", "get_dtype_inference", "manual_cast_dtype")
"""Attributes of the host's model, around the network, that take part in a recorded call."""

DEPTH = 4
"""Objects from a layer's replaced code to the tensors that it reads: method, hook, adapter, list."""


@dataclass(frozen=True, eq=False)
class Network:
    """What a network's modules say, read once a run.

    Attributes:
        addresses: of all weights and buffers, with their form; a graph reads from exactly these.
        obstacle: why nothing can be recorded, or None.
        sampling: the host's object that turns noise levels into times; it is part of a recorded call.
        code: what else a recorded call depends on: modules, their classes, and code that replaces theirs.
        device: where it is called.
        loose: tensors of a network with evictable weights that are not evicted. ComfyUI makes them, all
            small, anew
            for each run; a graph reads those of the run that it was captured in.
        residency: the weights that ComfyUI may evict; None where there are none (no dynamic VRAM).
    """

    addresses: tuple[Hashable, ...]
    obstacle: str | None = None
    sampling: object = None
    code: tuple[Hashable, ...] = ()
    device: torch.device | None = None
    loose: tuple[Tensor, ...] = ()
    residency: Residency | None = None

    def stands_as(self, other: Network) -> bool:
        """Whether a call that was recorded on one is a call of the other."""
        is_same = self.sampling is other.sampling and self.code == other.code
        return is_same and self.addresses == other.addresses and same_contents(self.loose, other.loose)

    @property
    def to_keep(self) -> Network:
        """What later runs are compared with: it keeps no layer alive."""
        return replace(self, residency=None)


def inspect(
    network: nn.Module,
    device: torch.device,
    sampling: object = None,
    owner: object = None,
    residency: Residency | None = None,
) -> Network:
    """Look at a network as it stands on `device`.

    Args:
        network: the host's network.
        device: where calls run.
        sampling: the host's object that turns noise levels into times.
        owner: the host's model around the network.
        residency: its weights that may be evicted, where they can be pinned.
    """
    modules = _modules(network)
    evictable = [module for module in modules if is_evictable(module, device)]
    moving = set(evictable)
    others = [*(each for each in modules if each not in moving), *_modules_of(sampling)]
    tensors = tuple(tensor for module in others for tensor in tensors_of(module))
    kinds = {kind: _Kind.of(kind) for kind in dict.fromkeys(map(type, modules))}
    marked = [(i, each) for i, each in enumerate(modules) if not kinds[type(each)].own.isdisjoint(vars(each))]
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
        tuple((place, name, _reference(each), _read_by(each)) for place, name, each in replaced),
        tuple(_reference(vars(owner).get(name)) for name in OWNER_CODE) if owner is not None else (),
    )
    if residency is None:
        return Network(tuple(map(_form, tensors)), obstacle, sampling, code, device)
    return Network(residency.identity, obstacle, sampling, code, device, tensors, residency)


def _modules(network: nn.Module) -> list[nn.Module]:
    """Each once, in order; `nn.Module.modules` spends its time on their names."""
    found, open_ends = {}, [network]
    while open_ends:
        module = open_ends.pop()
        if module not in found:
            found[module] = None
            open_ends += [each for each in reversed(module._modules.values()) if each is not None]
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
        code: the class's functions, and those of the file in which it is written.
        marks: names among `OBSTACLES` that the class sets.
        own: names that say something where a single module has an attribute of its own for them.
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
        return "somebody else watches the network's layers"
    return None


def _replaced_code(module: nn.Module, kind: _Kind) -> Iterator[tuple[str, Any]]:
    """Attributes of this one module that stand in for its class's functions (bypass LoRA, object patches)."""
    own = module.__dict__
    for name in own.keys() & kind.own - OBSTACLES.keys():
        if own[name] is not None and not _is_own(module, name, own[name]):
            yield name, own[name]


def _is_own(module: nn.Module, name: str, code: Any) -> bool:
    """Whether this is the class's own, as it stands after somebody took a patch away again."""
    return isinstance(code, MethodType) and code.__self__ is module and code.__func__ is getattr(
        type(module), name, None
    )  # fmt: skip


def _class_code(kind: type) -> tuple[Hashable, ...]:
    """The functions of a class, and those that the file has in which it is written."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    files = [sys.modules.get(each.__module__) for each in classes if not _is_by(each, TORCH)]
    held = [vars(each) for each in (*classes, *filter(None, files))]
    return tuple(value for each in held for value in each.values() if isinstance(value, FunctionType))


def _code_obstacle(replaced: Sequence[tuple[int, str, Any]]) -> str | None:
    """Code of others may do something else at each step; a recording would do the same for good."""
    if all(_is_by(code, HOST, TORCH) for *_, code in replaced):
        return None
    return "another node's code stands in for some of the network's layers"


def _kind_obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Tensors of other packs (GGUF's) do at each use what no recording knows of."""
    strange = next((type(t) for t in tensors if not _is_by(type(t), HOST, "torch")), None)
    return strange and f"weights are of an unknown kind ({strange.__name__})"


def _is_by(code: Any, *names: str) -> bool:
    return (getattr(code, "__module__", None) or "").startswith(names)


def _reference(code: Any) -> Hashable:
    if isinstance(code, MethodType):
        return _reference(code.__self__), code.__func__
    try:
        return ref(code)
    except TypeError:  # a number, a string, None: as they are
        return code


def _read_by(code: Any) -> tuple[Hashable, ...]:
    """Tensors, by address and form, and numbers that replaced code of the host's reads."""
    found, open_ends = [], [code] if _is_by(code, HOST) else []
    for _ in range(DEPTH):
        values = [value for each in open_ends for value in _held_by(each)]
        found += [_form(each) for each in values if isinstance(each, Tensor)]
        found += [each for each in values if isinstance(each, (bool, int, float))]
        open_ends = [each for each in values if not isinstance(each, (Tensor, nn.Module))]
    return tuple(found)


def _held_by(each: Any) -> Iterable[Any]:
    if isinstance(each, (list, tuple)):
        return each
    if isinstance(each, MethodType):
        return (each.__self__,)
    return vars(each).values() if hasattr(each, "__dict__") and not isinstance(each, type) else ()
