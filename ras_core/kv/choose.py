"""Which format a run keeps its K/V cache in, by what fits. Facts in, decisions out: no device."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RASError
from .formats import AUTO, FORMATS, automatic, first_choice, setting_names
from .spec import CacheSize, KVFormat

GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What a run's cache takes by arithmetic.

    Attributes:
        size: the cache, counted.
        branches: conditionings that this is the sum of.
    """

    size: CacheSize
    branches: int = 1

    def kept(self, name: str) -> int:
        """Bytes that a format keeps on the sampling device."""
        return FORMATS[name].device_nbytes(self.size)

    def of_a_branch(self, name: str) -> int:
        """The same for one of the branches, on average."""
        return self.kept(name) // self.branches

    def on_device(self, name: str) -> int:
        """Bytes that a format takes of the device, with attentions in passing."""
        return FORMATS[name].peak_nbytes(self.size)


@dataclass(frozen=True)
class Room:
    """Free bytes of the device and of main memory, and whether the device has float8."""

    device: int
    main_memory: int
    has_float8: bool = True

    def fits(self, form: KVFormat, size: CacheSize) -> bool:
        """Whether a cache fits in a format, on a device that has what the format needs."""
        if form.needs_float8 and not self.has_float8:
            return False
        has_main_memory = not form.in_main_memory or form.main_nbytes(size) <= self.main_memory
        return has_main_memory and form.peak_nbytes(size) <= self.device


@dataclass(frozen=True)
class Choice:
    """A decision, and why.

    Attributes:
        storage: the name of a format; None: the run has to be dense.
        reason: one sentence for the log.
        is_surprise: it is not the first choice of what the user asked for.
    """

    storage: str | None
    reason: str
    is_surprise: bool = False


def check_setting(setting: str) -> None:
    """Refuse a `kv_cache` that no format has.

    Raises:
        RASError: with the settings that there are.
    """
    if setting not in setting_names():
        raise RASError(
            f"kv_cache = {setting!r}.",
            f"one of {', '.join(setting_names())}.",
            "pick one of these for kv_cache.",
        )


def for_sampler(setting: str, adds_noise: bool) -> str:
    """The setting that a sampler can use: the user's, or the first choice of "auto"."""
    form = FORMATS.get(setting)
    if form is None or form.allows_added_noise or not adds_noise:
        return setting
    return first_choice(AUTO).name


def choose(wanted: str, needs: Needs, room: Room) -> Choice:
    """The format for a run. What the user names is taken as named; "auto" takes the first that fits."""
    if wanted != AUTO:
        form = FORMATS[wanted]
        if form.needs_float8 and not room.has_float8:
            return Choice(None, _no_float8(wanted), True)
        return Choice(wanted, _said(form, needs.size))
    first, *others = automatic()
    if room.fits(first, needs.size):
        return Choice(first.name, _said(first, needs.size))
    short = f"{_gib(first.nbytes(needs.size))} do not fit into {_gib(room.device)} of free memory"
    for form in others:
        if room.fits(form, needs.size):
            return Choice(form.name, f"{_said(form, needs.size)}, since {short}", True)
    return Choice(
        None,
        f"there is not enough memory for the K/V cache: {short}, nor into {_gib(room.main_memory)} of main "
        "memory",
        True,
    )


def _no_float8(wanted: str) -> str:
    *names, last = [AUTO, *(each.name for each in automatic() if not each.needs_float8)]
    return f"this device has no float8 (kv_cache = {wanted}); use {', '.join(names)} or {last}"


def _said(form: KVFormat, size: CacheSize) -> str:
    return form.text.format(size=_gib(form.nbytes(size)))


def _gib(nbytes: int) -> str:
    size = max(nbytes, 0)
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"
