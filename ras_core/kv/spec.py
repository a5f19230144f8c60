"""Entries of the registry of K/V formats, one for each setting of `kv_cache`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .plain import KVRows


@dataclass(frozen=True)
class CacheSize:
    """Size of the K/V cache of one run, known before anything is allocated.

    Attributes:
        numbers: how many numbers all keys and values of all attentions and branches contain together.
        rows: how many rows these keys and values have together.
        tokens: how many image tokens all images in all branches have together.
        largest: how many numbers the key and value of the largest attention contain together.
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
        """Bytes of the largest attention's key and value in the network's dtype."""
        return self.largest * self.itemsize


@dataclass(frozen=True)
class KVFormat:
    """One setting of `kv_cache`.

    Attributes:
        name: the setting.
        rows: class that keeps the rows of one attention; None keeps none.
        nbytes: returns the size of a run's cache in bytes, wherever it is kept.
        text: the log line of a run that uses the format; "{size}" is replaced by the size of the cache.
        in_main_memory: the cache is kept in main memory, not on the device.
        transients: working memory on the device during a call, as a multiple of `attention_nbytes`.
        keeps_addresses: its tensors keep their addresses during a run, so CUDA graphs may read them.
        advances: each call moves the rows that it replaces to those of the evaluation before
            (kv/forecast.py), so running a call twice leaves other rows than running it once.
        needs_float8: the device must be able to convert to float8 and back.
        auto_rank: "auto" uses the format of the lowest rank that fits; None excludes it from "auto".
        allows_added_noise: the format may be used with samplers that add noise at each step.
        is_offered: nodes offer this setting; otherwise only programs can use it.

    Raises:
        ValueError: `rows` belongs to another setting.
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
        # CUDA graphs find their buffers by this name; an inherited name would mix up two formats.
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
