"""Finds code of other packs inside the network that may have a cache of its own, and may return cached
results instead of running blocks.

In a regional call, such code would cache the rows of the active tokens, and might add these rows to different
tokens in a later call. So before a call is shortened to the active tokens, this module inspects the functions
and blocks that other packs have put in place of the network's own ones.
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

OWN = (__package__ or "").removesuffix("ras_core.run") or "ras_core."
"""Prefix of the names of this pack's Python modules. An attention of its benchmarks records results."""

DEPTH = 4
"""`may_keep` follows at most this many consecutive references, from a function to an object that the function
can write to."""

MOST_OBJECTS = 500
"""`holds_results` inspects at most this many objects when it searches for a tensor."""

WRITES = frozenset({"DELETE_ATTR", "STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "STORE_SLICE"})
"""Names of the bytecode instructions that write to an object that may still exist after the function has
returned: an attribute, a global variable or an element of a container."""

CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, range, type, Enum, ModuleType, BuiltinFunctionType,
    Tensor, torch.dtype, torch.device, logging.Logger,
)  # fmt: skip
"""Types of values that `may_keep` and `holds_results` do not search, because a function does not keep its
results in values of these types."""


def other_cache(network: nn.Module, blocks: Sequence[nn.Module], replacements: Iterable[Any]) -> str | None:
    """The reason, for the log, why the network must run on all tokens: code of another pack in this network
    may have a cache of its own. None if no such code is found.

    Args:
        network: ComfyUI's network.
        blocks: its blocks.
        replacements: functions that other nodes' patches run in place of blocks.
    """
    for kind in dict.fromkeys(map(type, blocks)):
        if _package(kind) != _package(type(network)) and not is_by(kind, TORCH):
            return f"another node replaces the network's blocks (by {kind.__name__})"
    forwards = (vars(block).get("forward") for block in blocks)
    if any(map(may_keep, (*filter(None, forwards), *_own_functions(network), *replacements))):
        return "another node replaces parts of the network by code that may answer from a cache of its own"
    return None


def holds_results(code: Any) -> bool:
    """Whether a function has access, at this moment, to a mutable object that contains a tensor. The function
    may have stored this tensor there as the result of an earlier call. The code of ComfyUI, torch and this
    pack is not inspected.
    """
    pending, seen = [code], 0
    while pending and seen < MOST_OBJECTS:
        each, seen = pending.pop(), seen + 1
        if isinstance(each, (*CONSTANT, nn.Module)) or is_by(each, COMFYUI, TORCH, OWN):
            continue
        parts = _parts(each)
        if parts is None:
            parts = tuple(_contents(each))
            if any(isinstance(part, Tensor) for part in _flat(parts)):
                return True
        pending += parts
    return False


def _contents(value: Any) -> Iterable[Any]:
    """The values in a mutable object: a mapping's values, a collection's elements, or the attributes."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (Sequence, Set)):
        return value
    return vars(value).values() if hasattr(value, "__dict__") else ()


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values one after the other; tuples among them are replaced by their elements, at any depth."""
    for each in values:
        if isinstance(each, tuple):
            yield from _flat(each)
        else:
            yield each


@contextmanager
def watched(blocks: Iterable[nn.Module]) -> Iterator[list[bool]]:
    """Yield a list that is empty at first. Each time one of these blocks runs during the body of the `with`,
    the list gets an entry.
    """
    ran: list[bool] = []
    handles = [block.register_forward_pre_hook(lambda *_: ran.append(True)) for block in blocks]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def may_keep(code: Any, depth: int = DEPTH, trusts_modules: bool = False) -> bool:
    """Whether a function may keep a result from one call to the next. This is assumed if the function writes
    to an object that may still exist after the call, or if it can access a mutable object. ComfyUI's and
    torch's own functions are trusted: for them the result is False.

    Args:
        code: the function, or a value that a function can access.
        depth: how many consecutive references may still be followed from `code`.
        trusts_modules: assume that modules keep nothing, whoever wrote their classes.
    """
    if isinstance(code, CONSTANT):
        return False
    if isinstance(code, nn.Module):
        return not trusts_modules and not all(is_by(type(each), COMFYUI, TORCH) for each in code.modules())
    if is_by(code, COMFYUI, TORCH):
        return False
    if depth == 0:
        return True
    if isinstance(code, FunctionType) and _writes(code.__code__):
        return True
    parts = _parts(code)
    return parts is None or any(may_keep(each, depth - 1, trusts_modules) for each in parts)


def _parts(value: Any) -> Iterable[Any] | None:
    """The objects that an immutable value (a function, method, partial, tuple or frozenset) refers to. None
    if the value is of any other type, and so may be mutable.
    """
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
    """The values that a function can use apart from its arguments: those in its closure, its defaults, and
    the global variables that it reads. Global functions of other packages are left out.
    """
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
    """Functions that are set on this module object itself, and replace functions of its class."""
    own = vars(module)
    return [own[name] for name in own.keys() & _names_of_functions(type(module)) if own[name] is not None]


@lru_cache(maxsize=256)
def _names_of_functions(kind: type) -> frozenset[str]:
    return frozenset(name for each in kind.__mro__ for name, value in vars(each).items() if callable(value))


def _package(code: Any) -> str:
    return (getattr(code, "__module__", None) or "").split(".")[0]
