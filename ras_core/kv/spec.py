"""Entries of the registry of K/V formats, one for each setting of `kv_cache`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .plain import KVRows


@dataclass(frozen=True)
class CacheSize:
    """Size of the K/V cache of one run, known before anything is allocated.

    Attributes:
        numbers: numbers in all keys and values.
        rows: rows of all keys and values.
        tokens: image tokens of all images in all branches.
        largest: numbers in the key and value of the largest attention.
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
        nbytes: size of the cache in bytes, on the device or in main memory.
        text: the log line of a run that uses it; "{size}" is replaced by this size.
        in_main_memory: the cache is kept in main memory, not on the device.
        transients: temporary copies on the device, counted in keys and values of one whole attention.
        keeps_addresses: its tensors keep their addresses during a run, so CUDA graphs may read them.
        advances: its rows depend on the last two evaluations (kv/extrapolation.py), so repeating a call
            changes them again.
        needs_float8: the device must be able to convert to float8 and back.
        auto_rank: "auto" uses the format of the lowest rank that fits; None excludes it from "auto".
        allows_added_noise: it may be used with samplers that add noise.
        is_offered: nodes offer it; otherwise only programs can set it.

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
        """Bytes that it keeps on the device."""
        return 0 if self.in_main_memory else self.nbytes(size)

    def main_nbytes(self, size: CacheSize) -> int:
        """Bytes that it keeps in main memory."""
        return self.nbytes(size) if self.in_main_memory else 0

    def peak_nbytes(self, size: CacheSize) -> int:
        """Peak bytes on the device, including transients."""
        return self.device_nbytes(size) + self.transients * size.attention_nbytes
