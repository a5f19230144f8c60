"""Measures whether a scenario leaks memory.

The memory of the process is no measure of this. It grows by hundreds of MiB in the first half hour, because
each new shape, data type and model family fills caches: of PyTorch's and oneDNN's compiled code, and of the
weights that `support.families` draws. But when a scenario is played again, these caches have its entries, so
that any further growth is a leak. It is measured in the memory that is in use, because freed memory that the
C library keeps for later depends on the order of all allocations before.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import psutil

AGAIN = 2
"""How many times a scenario is played again. The least growth from one time to the next counts, because some
caches have further entries for the second time, or drop old ones."""

LEAST_LEAK = 2**16
"""Number of bytes that count as a leak if memory grows by so much each time that a scenario is played."""

LEAST_BLOCKS = 300
"""The same for blocks of memory that Python allocates for its objects, which are about 100 bytes each."""


class InUse(NamedTuple):
    """Memory in use.

    Attributes:
        nbytes: bytes that the C library has allocated, such as those of all tensors.
        blocks: number of blocks that Python has allocated for its objects.
    """

    nbytes: int
    blocks: int


class _Mallinfo(ctypes.Structure):
    """The result of glibc's function mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                     "fordblks", "keepcost")
    ]  # fmt: skip


def leaked(again: Callable[[], None]) -> list[str]:
    """Call the function `again`, which plays a scenario that was played before, AGAIN times. Returns a
    sentence that says what is wrong if the memory in use grows each time, otherwise an empty list.
    """
    used = [in_use()]
    for _ in range(AGAIN):
        again()
        used.append(in_use())
    steps = list(zip(used, used[1:], strict=False))
    nbytes = min(after.nbytes - before.nbytes for before, after in steps)
    blocks = min(after.blocks - before.blocks for before, after in steps)
    if nbytes < LEAST_LEAK and blocks < LEAST_BLOCKS:
        return []
    return [f"leaked {nbytes / 2**10:.0f} KiB and {blocks} blocks of Python each time it was played again"]


def in_use() -> InUse:
    """The memory in use now."""
    gc.collect()
    nbytes = 0
    with suppress(OSError, AttributeError):  # another C library, or glibc before 2.33
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
        mallinfo.restype = _Mallinfo
        found = mallinfo()
        nbytes = found.uordblks + found.hblkhd
    return InUse(nbytes, sys.getallocatedblocks())


def resident_mib() -> int:
    """Memory of the process in MiB, without freed memory that the C library has kept for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss >> 20
