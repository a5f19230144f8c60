"""Runs networks eagerly even if torch.compile has compiled them."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

CAN_SWITCH = hasattr(torch.compiler, "set_stance")  # from torch 2.6 on
"""Whether compiled code can be switched off temporarily."""


def force_eager() -> AbstractContextManager[Any]:
    """Run compiled networks eagerly in the body. Hooks are attached and removed for each call, and each
    change would trigger a recompilation, up to torch's limit. Does nothing while torch is compiling the code
    that calls this function, as with a node that compiles more than the network.
    """
    if not CAN_SWITCH or "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
