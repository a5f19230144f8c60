"""Switches off the CUDA graphs and the compiler that ComfyUI itself has from version 0.33 on.

While a network's blocks run, the compiler gives each memory allocation a fixed address. It recognises an
allocation by its number in the order of all allocations. A step on fewer tokens makes other allocations, so
the compiler is off during runs with RAS. If the compiler is active in spite of this, this pack pauses it
while allocating buffers that outlive a call, and captures no CUDA graph. ComfyUI's own graphs replay blocks
without running their hooks (run/coverage.py detects this).
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import comfy.cli_args

PREFETCH = "comfy.model_prefetch"
SWITCHES = ("disable_comfy_compiler", "disable_cuda_graphs")


@contextmanager
def compiler_off(is_wanted: bool) -> Iterator[None]:
    """Switch off ComfyUI's own compiler and CUDA graphs in the body of the `with`, if `is_wanted`."""
    args = comfy.cli_args.args
    before = {name: getattr(args, name) for name in SWITCHES if is_wanted and hasattr(args, name)}
    try:
        for name in before:
            setattr(args, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


def pause() -> Callable[[], AbstractContextManager] | None:
    """A function that returns a context manager for allocations that outlive a call: in the body of the
    `with`, the compiler assigns no fixed addresses. None if this version of ComfyUI has no compiler.
    """
    pause_malloc_graph = _prefetch("pause_malloc_graph")
    if pause_malloc_graph is None:
        return None
    takes_sync = "sync" in inspect.signature(pause_malloc_graph).parameters
    return partial(pause_malloc_graph, sync=True) if takes_sync else pause_malloc_graph


def capture_obstacle() -> str | None:
    """Why no CUDA graph can be captured now, or None. A capture fails while ComfyUI's compiler tracks the
    allocations of this thread.
    """
    by_thread = _prefetch("MALLOC_GRAPHS")  # a dict by thread; an earlier ComfyUI has a list instead
    own = by_thread.get(threading.get_ident()) if isinstance(by_thread, Mapping) else None
    if getattr(own, "_comfy_active", False) or _prefetch("ACTIVE_MALLOC_GRAPHS"):
        return "ComfyUI's compiler is active"
    return None


def _prefetch(name: str) -> Any:
    return getattr(sys.modules.get(PREFETCH), name, None)
