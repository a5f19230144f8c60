"""Code of other packs inside the network that may answer from a cache of its own instead of running blocks.

In a regional call such code would keep rows of the active tokens, and later add them to other tokens. So it
is found before a call is shortened, by what replaces the network's functions and blocks.
"""

from __future__ import annotations

import dis
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..graphs.code_identity import COMFYUI, TORCH, is_by

DEPTH = 4
"""Number of consecutive references that are followed from a function to something that it may write to."""

WRITES = frozenset({"STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "STORE_SLICE"})
"""Instructions that write to something that may outlive the call."""

CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, range, type, Enum, ModuleType, BuiltinFunctionType,
    Tensor, torch.dtype, torch.device, logging.Logger,
)  # fmt: skip
"""Types of values in which a function keeps no result."""


def other_cache(network: nn.Module, blocks: Iterable[nn.Module], replacements: Iterable[Any]) -> str | None:
    """Why the network must run on all tokens, as a reason for the log; None if it may run on fewer.

    Args:
        network: ComfyUI's network.
        blocks: its blocks.
        replacements: functions of other nodes' patches that run instead of blocks.
    """
    blocks = list(blocks)
    package = _package(type(network))
    for block in blocks:
        if _package(type(block)) != package and not is_by(type(block), TORCH):
            return f"another node replaces the network's blocks (by {type(block).__name__})"
    own = (code for module in (network, *blocks) for code in _own_functions(module))
    if any(map(may_keep, (*own, *replacements))):
        return "another node replaces parts of the network by code that may answer from a cache of its own"
    return None


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
