"""Networks that torch.compile has compiled."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

CAN_SWITCH = hasattr(torch.compiler, "set_stance")  # from torch 2.6 on
"""Whether compiled code can be switched off for a while."""


def force_eager() -> AbstractContextManager[Any]:
    """Compiled networks run their own code in the body: hooks come and go, and with each change of them the
    compiler would break the network into more pieces, up to its limit. Code that is itself being compiled, as
    in a node that compiles more than the network, cannot switch, and goes on.
    """
    if not CAN_SWITCH or "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
