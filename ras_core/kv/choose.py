"""Chooses the K/V format of a run according to the free memory. The functions here access no device: the
caller measures the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RASError
from . import forecast
from .formats import AUTO, FORMATS, automatic, first_choice, setting_names
from .spec import CacheSize, KVFormat

GIB = 2**30

AMPLE = 2
"""Device memory is ample for a cache if the free bytes are at least this many times the cache's peak
bytes."""


@dataclass(frozen=True)
class Needs:
    """Memory that the K/V cache of a run needs, computed from the cache's shapes.

    Attributes:
        size: size of the cache of all branches together.
        branches: number of branches, i.e. of conditionings (such as positive and negative), that a run
            evaluates.
    """

    size: CacheSize
    branches: int = 1

    def kept(self, name: str) -> int:
        """Bytes that the cache of all branches occupies on the sampling device in this format."""
        return FORMATS[name].device_nbytes(self.size)

    def of_a_branch(self, name: str) -> int:
        """Bytes that the cache of one branch occupies on the sampling device in this format, on average."""
        return self.kept(name) // self.branches

    def on_device(self, name: str) -> int:
        """Peak bytes that the cache of all branches needs on the device in this format, transient copies
        included.
        """
        return FORMATS[name].peak_nbytes(self.size)


@dataclass(frozen=True)
class Room:
    """Free bytes on the device and in main memory, and whether the device supports float8."""

    device: int
    main_memory: int
    has_float8: bool = True

    def is_ample(self, form: KVFormat, size: CacheSize) -> bool:
        """Whether the free device memory is at least `AMPLE` times the peak bytes of this cache in this
        format.
        """
        return AMPLE * form.peak_nbytes(size) <= self.device

    def fits(self, form: KVFormat, size: CacheSize) -> bool:
        """Whether the device supports this format and a cache of this size fits into memory."""
        if form.needs_float8 and not self.has_float8:
            return False
        has_main_memory = not form.in_main_memory or form.main_nbytes(size) <= self.main_memory
        return has_main_memory and form.peak_nbytes(size) <= self.device


@dataclass(frozen=True)
class Choice:
    """The chosen format, and why.

    Attributes:
        format_name: the chosen format; None if the run must be dense.
        reason: one sentence for the log.
        is_fallback: True if the user's setting would use another format on a device that supports it and has
            enough memory.
    """

    format_name: str | None
    reason: str
    is_fallback: bool = False


def check_setting(setting: str) -> None:
    """Raise an error if the setting of `kv_cache` is unknown.

    Raises:
        RASError: the setting is unknown; the message lists the known ones.
    """
    if setting != AUTO and setting not in FORMATS:
        raise RASError(
            f"kv_cache = {setting!r}.",
            f"one of {', '.join(setting_names())}.",
            "pick one of these for kv_cache.",
        )


def for_sampler(setting: str, adds_noise: bool) -> str:
    """The user's setting of `kv_cache`. Exception: if the run's sampler adds noise and the setting's format
    must not be used with such samplers, this returns the first choice of "auto".
    """
    form = FORMATS.get(setting)
    if form is None or form.allows_added_noise or not adds_noise:
        return setting
    return first_choice(AUTO).name


def for_corrected(setting: str, needs: Needs, room: Room) -> str:
    """The setting of `kv_cache` for a run whose sampler corrects the past steps of tokens that become active
    again (RAS's multirate integrator). In such a run, "auto" becomes "forecast" if device memory is ample for
    that format; any other setting is returned unchanged.
    """
    if setting == AUTO and room.is_ample(forecast.FORMAT, needs.size):
        return forecast.FORMAT.name
    return setting


def choose(wanted: str, needs: Needs, room: Room) -> Choice:
    """The format for a run: the format that `wanted` names, or for "auto" the first one that fits into
    memory.
    """
    if wanted != AUTO:
        form = FORMATS[wanted]
        if form.needs_float8 and not room.has_float8:
            return Choice(None, _no_float8(wanted), True)
        return Choice(wanted, _describe(form, needs.size))
    first, *others = automatic()
    if room.fits(first, needs.size):
        return Choice(first.name, _describe(first, needs.size))
    short = f"{_gib(first.nbytes(needs.size))} do not fit into {_gib(room.device)} of free device memory"
    for form in others:
        if room.fits(form, needs.size):
            return Choice(form.name, f"{_describe(form, needs.size)}, since {short}", True)
    return Choice(
        None,
        f"there is not enough memory for the K/V cache: {short} or {_gib(room.main_memory)} of free main "
        "memory",
        True,
    )


def _no_float8(wanted: str) -> str:
    *names, last = [AUTO, *(each.name for each in automatic() if not each.needs_float8)]
    return f"this device does not support float8 (kv_cache = {wanted}); use {', '.join(names)} or {last}"


def _describe(form: KVFormat, size: CacheSize) -> str:
    return form.text.format(size=_gib(form.nbytes(size)))


def _gib(nbytes: int) -> str:
    size = max(nbytes, 0)
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"
