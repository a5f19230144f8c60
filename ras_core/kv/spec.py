"""What the registry of K/V formats holds: one description for each setting of `kv_cache`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .plain import KVRows


@dataclass(frozen=True)
class CacheSize:
    """The K/V cache of one run, counted before anything is allocated.

    Attributes:
        numbers: numbers in all keys and values.
        rows: rows of all keys and values.
        tokens: image tokens of all images in all branches.
        largest: numbers in the key and value of the largest attention.
        itemsize: bytes of a number as the network computes it.
    """

    numbers: int
    rows: int
    tokens: int
    largest: int
    itemsize: int

    @property
    def plain_nbytes(self) -> int:
        """Bytes of all keys and values as they are."""
        return self.numbers * self.itemsize

    @property
    def attention_nbytes(self) -> int:
        """Bytes of the largest attention's key and value as they are."""
        return self.largest * self.itemsize


@dataclass(frozen=True)
class KVFormat:
    """One setting of `kv_cache`.

    Attributes:
        name: the setting.
        rows: what keeps the rows of one attention; None keeps none.
        nbytes: bytes that the cache keeps, wherever it keeps them.
        text: what the log says of a run that uses it; "{size}" stands for these bytes.
        in_main_memory: they are kept in main memory, not on the device.
        transients: keys and values of whole attentions, as they are, that the device holds in addition.
        stays_in_place: its tensors keep their addresses during a run, so CUDA graphs may read them.
        advances: its rows depend on the last two evaluations (kv/extrapolation.py): running a call twice
            advances them twice.
        needs_float8: the device must convert to float8 and back.
        auto_rank: "auto" takes the format of the lowest rank that fits; None: only on request.
        allows_added_noise: it may be used with samplers that add noise.

    Raises:
        ValueError: `rows` says that it belongs to another setting.
    """

    name: str
    rows: type[KVRows] | None
    nbytes: Callable[[CacheSize], int]
    text: str
    in_main_memory: bool = False
    transients: int = 0
    stays_in_place: bool = True
    advances: bool = False
    needs_float8: bool = False
    auto_rank: int | None = None
    allows_added_noise: bool = True

    def __post_init__(self) -> None:
        # CUDA graphs find their buffers by this name: an inherited one would mix up two formats.
        if self.rows is not None and self.rows.storage != self.name:
            raise ValueError(f"{self.rows.__name__}.storage = {self.rows.storage!r} in format {self.name!r}")

    def device_nbytes(self, size: CacheSize) -> int:
        """Bytes that it keeps on the device."""
        return 0 if self.in_main_memory else self.nbytes(size)

    def main_nbytes(self, size: CacheSize) -> int:
        """Bytes that it keeps in main memory."""
        return self.nbytes(size) if self.in_main_memory else 0

    def peak_nbytes(self, size: CacheSize) -> int:
        """Bytes that it takes of the device, with what is there in passing."""
        return self.device_nbytes(size) + self.transients * size.attention_nbytes
