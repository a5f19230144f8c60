"""Code of other packs inside the network that may answer from a cache of its own instead of running blocks.

In a regional call such code would keep rows of the active tokens, and later add them to other tokens. So it
is found before a call is shortened, by what replaces the network's functions and blocks.
"""

from __future__ import annotations

import dis
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..graphs.code_identity import COMFYUI, TORCH, is_by

DEPTH = 4
"""Number of consecutive references that are followed from a function to something that it may write to."""

MOST_OBJECTS = 500
"""Number of objects that are searched for a tensor."""

WRITES = frozenset({"STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "STORE_SLICE"})
"""Instructions that write to something that may outlive the call."""

CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, range, type, Enum, ModuleType, BuiltinFunctionType,
    Tensor, torch.dtype, torch.device, logging.Logger,
)  # fmt: skip
"""Types of values in which a function keeps no result."""


def other_cache(network: nn.Module, blocks: Sequence[nn.Module], replacements: Iterable[Any]) -> str | None:
    """Why the network must run on all tokens, as a reason for the log; None if it may run on fewer.

    Args:
        network: ComfyUI's network.
        blocks: its blocks.
        replacements: functions of other nodes' patches that run instead of blocks.
    """
    for kind in dict.fromkeys(map(type, blocks)):
        if _package(kind) != _package(type(network)) and not is_by(kind, TORCH):
            return f"another node replaces the network's blocks (by {kind.__name__})"
    forwards = (vars(block).get("forward") for block in blocks)
    if any(map(may_keep, (*filter(None, forwards), *_own_functions(network), *replacements))):
        return "another node replaces parts of the network by code that may answer from a cache of its own"
    return None


def holds_results(code: Any) -> bool:
    """Whether a function can now reach a tensor in an object that it can write to, so that this tensor may be
    a result of an earlier call. ComfyUI's and torch's code does not count.
    """
    pending, seen = [code], 0
    while pending and seen < MOST_OBJECTS:
        each, seen = pending.pop(), seen + 1
        if isinstance(each, (*CONSTANT, nn.Module)) or is_by(each, COMFYUI, TORCH):
            continue
        parts = _parts(each)
        if parts is None:
            parts = tuple(_contents(each))
            if any(isinstance(part, Tensor) for part in _flat(parts)):
                return True
        pending += parts
    return False


def _contents(value: Any) -> Iterable[Any]:
    """What an object that can be written to contains."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (Sequence, Set)):
        return value
    return vars(value).values() if hasattr(value, "__dict__") else ()


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """These values, and those in tuples among them."""
    for each in values:
        if isinstance(each, tuple):
            yield from _flat(each)
        else:
            yield each


@contextmanager
def watched(blocks: Iterable[nn.Module]) -> Iterator[list[bool]]:
    """A list that is no longer empty once one of these blocks has run during the body."""
    ran: list[bool] = []
    handles = [block.register_forward_pre_hook(lambda *_: ran.append(True)) for block in blocks]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def may_keep(code: Any, depth: int = DEPTH) -> bool:
    """Whether a function may keep a result from one call to the next: it writes to something that may outlive
    the call, or it reaches an object that can be written to. ComfyUI's and torch's code does not count.
    """
    if isinstance(code, CONSTANT):
        return False
    if isinstance(code, nn.Module):
        return not all(is_by(type(each), COMFYUI, TORCH) for each in code.modules())
    if is_by(code, COMFYUI, TORCH):
        return False
    if depth == 0:
        return True
    if isinstance(code, FunctionType) and _writes(code.__code__):
        return True
    parts = _parts(code)
    return parts is None or any(may_keep(each, depth - 1) for each in parts)


def _parts(value: Any) -> Iterable[Any] | None:
    """What a value refers to that cannot be written to itself; None for any other value."""
    if isinstance(value, FunctionType):
        return _read_by(value)
    if isinstance(value, (tuple, frozenset)):
        return value
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    return None


def _read_by(function: FunctionType) -> Iterator[Any]:
    """What a function reads from outside a call; of other packages' functions, nothing."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable without a value
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _globals_of(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, FunctionType) or _package(value) == _package(function):
            yield value


@lru_cache(maxsize=1024)
def _writes(code: CodeType) -> bool:
    outer = set(code.co_freevars)
    return any(
        each.opname in WRITES or (each.opname == "STORE_DEREF" and each.argval in outer)
        for each in dis.get_instructions(code)
    )


@lru_cache(maxsize=1024)
def _globals_of(code: CodeType) -> tuple[str, ...]:
    return tuple({each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"})


def _own_functions(module: nn.Module) -> list[Any]:
    """Functions of this one module that replace those of its class."""
    own = vars(module)
    return [own[name] for name in own.keys() & _names_of_functions(type(module)) if own[name] is not None]


@lru_cache(maxsize=256)
def _names_of_functions(kind: type) -> frozenset[str]:
    return frozenset(name for each in kind.__mro__ for name, value in vars(each).items() if callable(value))


def _package(code: Any) -> str:
    return (getattr(code, "__module__", None) or "").split(".")[0]
