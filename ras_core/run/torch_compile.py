"""Runs networks eagerly even if torch.compile has compiled them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])

CAN_SWITCH = hasattr(torch.compiler, "set_stance")  # from torch 2.6 on
"""Whether this version of torch can switch to eager mode temporarily, for networks compiled before."""


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has compiled this module."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def force_eager() -> AbstractContextManager[Any]:
    """Run compiled networks eagerly in the body of the `with`. RAS attaches and removes hooks for each call,
    and each of these changes would make torch compile again, until torch's recompilation limit is reached. If
    a node compiles more than the network, torch may be compiling the very code that calls this function; then
    the function does nothing.
    """
    if not CAN_SWITCH or "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def untraced(function: Function) -> Function:
    """A function that does the same as `function`, and that torch.compile does not trace. A node may have
    compiled the code that calls `function`. What RAS does in a call changes from step to step, and torch
    would compile again for each change.
    """
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes seconds
        return function
    return torch.compiler.disable(function)
