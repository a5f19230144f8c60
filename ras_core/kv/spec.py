"""Entries of the registry of K/V formats, one for each setting of `kv_cache`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .plain import KVRows


@dataclass(frozen=True)
class CacheSize:
    """Size of the K/V cache of one run, known before anything is allocated.

    Attributes:
        numbers: total of numbers in the keys and values of all attentions and branches.
        rows: total of rows of the keys and values of all attentions and branches.
        tokens: total of image tokens, over all images of all branches.
        largest: numbers in the key and value, taken together, of the largest attention.
        itemsize: bytes per number in the network's dtype.
    """

    numbers: int
    rows: int
    tokens: int
    largest: int
    itemsize: int

    @property
    def plain_nbytes(self) -> int:
        """Bytes of all keys and values in the network's dtype."""
        return self.numbers * self.itemsize

    @property
    def attention_nbytes(self) -> int:
        """Bytes of the key and value, together, of the largest attention, in the network's dtype."""
        return self.largest * self.itemsize


@dataclass(frozen=True)
class KVFormat:
    """One setting of `kv_cache`.

    Attributes:
        name: the setting of `kv_cache`.
        rows: class that keeps the rows of one attention; None if the format has no cache.
        nbytes: function that returns the bytes of a run's cache, on the device or in main memory.
        text: what the log of a run says about the format; "{size}" is replaced by the size of the run's
            cache.
        in_main_memory: True if the cache is kept in main memory, False if it is kept on the device.
        transients: working memory that a call needs on the device, as a multiple of
            `CacheSize.attention_nbytes`.
        keeps_addresses: whether the cache's tensors keep their addresses during a run, so that CUDA graphs
            may read them.
        advances: whether each call copies the rows that it replaces to the tensors of the evaluation before
            (kv/forecast.py). If so, the cache has other rows after running a call twice than after running it
            once.
        needs_float8: whether the device must be able to convert numbers to float8 and back.
        auto_rank: among formats whose cache fits into memory, "auto" uses the one with the lowest rank; with
            None, "auto" never uses this format.
        allows_added_noise: whether the format may be used with samplers that add noise at each step.
        is_offered: whether nodes offer this setting; if not, it can only be chosen in Python code.

    Raises:
        ValueError: the class `rows` has the `format_name` of another setting.
    """

    name: str
    rows: type[KVRows] | None
    nbytes: Callable[[CacheSize], int]
    text: str
    in_main_memory: bool = False
    transients: int = 0
    keeps_addresses: bool = True
    advances: bool = False
    needs_float8: bool = False
    auto_rank: int | None = None
    allows_added_noise: bool = True
    is_offered: bool = True

    def __post_init__(self) -> None:
        # CUDA graphs find their buffers by format name; with an inherited name, two formats would share them.
        if self.rows is not None and self.rows.format_name != self.name:
            found = f"{self.rows.__name__}.format_name = {self.rows.format_name!r}"
            raise ValueError(f"{found} in format {self.name!r}")

    def device_nbytes(self, size: CacheSize) -> int:
        """Bytes that a cache of this size occupies on the device in this format, without transients."""
        return 0 if self.in_main_memory else self.nbytes(size)

    def main_nbytes(self, size: CacheSize) -> int:
        """Bytes that a cache of this size occupies in main memory in this format."""
        return self.nbytes(size) if self.in_main_memory else 0

    def peak_nbytes(self, size: CacheSize) -> int:
        """Peak bytes of a cache of this size on the device in this format, including transients."""
        return self.device_nbytes(size) + self.transients * size.attention_nbytes
