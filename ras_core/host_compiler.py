"""ComfyUI's own graphs and compiler (0.33 and later), by names that may be absent.

Its compiler gives the memory of a network's blocks fixed places, in the order in which it is allocated, and a
step on fewer tokens allocates another amount: it is off while a run of ours lasts. Where it is on all the
same, buffers that outlive a call are made outside of it, and nothing is recorded. Its graphs replay blocks
without the hooks in them (hooks.py notices that).
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
    """The host compiles and records nothing of its own in the body, if wanted; then as before."""
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
    """What keeps memory that is allocated in its body out of the host's fixed places, for long use; None
    where the host has nothing of the kind.
    """
    pause_malloc_graph = _prefetch("pause_malloc_graph")
    if pause_malloc_graph is None:
        return None
    takes_sync = "sync" in inspect.signature(pause_malloc_graph).parameters
    return partial(pause_malloc_graph, sync=True) if takes_sync else pause_malloc_graph


def recording_obstacle() -> str | None:
    """Why nothing may be recorded now, or None: allocations of this thread are being recorded already."""
    by_thread = _prefetch("MALLOC_GRAPHS")  # one a thread; an earlier form lists the active ones
    own = by_thread.get(threading.get_ident()) if isinstance(by_thread, Mapping) else None
    if getattr(own, "_comfy_active", False) or _prefetch("ACTIVE_MALLOC_GRAPHS"):
        return "ComfyUI's compiler is at work"
    return None


def _prefetch(name: str) -> Any:
    return getattr(sys.modules.get(PREFETCH), name, None)
