"""How a run keeps its K/V cache, by what fits. Facts in, decisions out: no device."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import KVCache

GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes of a run's cache by arithmetic (cost.CacheProfile).

    Attributes:
        plain, fp8, forecast: under these storages.
        attention: K and V of one attention as they are, in passing.
        branches: conditionings that these are the sums of.
    """

    plain: int
    fp8: int
    attention: int
    forecast: int = 0
    branches: int = 1

    def kept(self, storage: str) -> int:
        """What a storage keeps in the sampling device's memory."""
        known = {"fp8": self.fp8, "cpu": 0, "off": 0, "forecast": self.forecast}
        return known.get(storage, self.plain)

    def of_a_branch(self, storage: str) -> int:
        """The same for one of the branches, on average."""
        return self.kept(storage) // self.branches

    def on_device(self, storage: str) -> int:
        """What a storage takes of that memory, with attentions in passing."""
        in_passing = {"fp8": 1, "cpu": 2, "forecast": 1}
        return self.kept(storage) + in_passing.get(storage, 0) * self.attention


@dataclass(frozen=True)
class Room:
    """What there is: free bytes of the device and of main memory, and whether the device knows float8."""

    device: int
    host: int
    has_float8: bool = True


@dataclass(frozen=True)
class Choice:
    """A decision, and why.

    Attributes:
        storage: one of kv/storage.py; None: the run has to be dense.
        reason: one sentence for the log.
        is_surprise: it is not the first choice of what the user asked for.
    """

    storage: str | None
    reason: str
    is_surprise: bool = False


def choose(wanted: KVCache, needs: Needs, room: Room) -> Choice:
    """The storage for a run. What the user names is taken as named; "auto" takes the first that fits."""
    if wanted == "fp8" and not room.has_float8:
        return Choice(None, "this device has no float8 (kv_cache = fp8); use auto, gpu or cpu", True)
    if wanted != "auto":
        return Choice(wanted, _kept(wanted, needs))
    if needs.plain <= room.device:
        return Choice("gpu", _kept("gpu", needs))
    short = f"{_gib(needs.plain)} do not fit into {_gib(room.device)} of free memory"
    if room.has_float8 and needs.on_device("fp8") <= room.device:
        return Choice("fp8", f"{_kept('fp8', needs)}, since {short}", True)
    if needs.on_device("cpu") <= room.device and needs.plain <= room.host:
        return Choice("cpu", f"{_kept('cpu', needs)}, since {short}", True)
    return Choice(
        None,
        f"there is not enough memory for the K/V cache: {short}, nor into {_gib(room.host)} of main memory",
        True,
    )


def _kept(storage: str, needs: Needs) -> str:
    return {
        "gpu": f"the K/V cache of {_gib(needs.plain)} is kept on the device",
        "fp8": f"the K/V cache is kept as fp8 ({_gib(needs.fp8)})",
        "cpu": f"the K/V cache of {_gib(needs.plain)} is kept in main memory",
        "forecast": f"the K/V cache of {_gib(needs.forecast)} is kept on the device, with its last change",
        "off": "no K/V cache: active tokens attend among themselves and to text only",
    }[storage]


def _gib(nbytes: int) -> str:
    size = max(nbytes, 0)
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"
