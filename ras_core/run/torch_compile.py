"""torch.compile, as ComfyUI's own node and those built on it apply it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

WRAPPERS = "torch.compile"
"""The host's key for wrappers that put compiled modules in the place of the network's own, and back."""

_CAN_SWITCH = hasattr(torch.compiler, "set_stance")  # from torch 2.6 on


def as_written() -> AbstractContextManager[Any]:
    """Compiled networks run their own code in the body: hooks come and go, and with each change of them the
    compiler would break the network into more pieces, up to its limit. Code that is itself being compiled, as
    in a node that compiles more than the network, cannot switch, and goes on.
    """
    if not _CAN_SWITCH or "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def wrappers_that_compile(options: Mapping[str, Any]) -> int:
    """How many wrappers of a call, by its transformer options, change nothing where code runs as written."""
    return len(options.get("wrappers", {}).get("apply_model", {}).get(WRAPPERS, ())) if _CAN_SWITCH else 0
