"""Runs networks eagerly even if torch.compile has compiled them."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

CAN_SWITCH = hasattr(torch.compiler, "set_stance")  # from torch 2.6 on
"""Whether this version of torch can temporarily run networks eagerly that torch.compile has compiled."""


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has compiled this module."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def force_eager() -> AbstractContextManager[Any]:
    """Run compiled networks eagerly in the body of the `with`. RAS attaches and removes hooks for each call,
    and each of these changes would make torch compile again, until torch's limit of recompilations. This
    function does nothing while torch is compiling the code that calls it, as happens if a node compiles more
    than the network.
    """
    if not CAN_SWITCH or "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
