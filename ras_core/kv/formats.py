"""The registry of K/V formats. Each setting of `kv_cache` except "auto" names a format; the format's entry
here holds all that other code must know about it.

To add a format, write one file with a subclass of `KVRows` and a `KVFormat` that describes it, and add the
`KVFormat` to FORMATS.
"""

from __future__ import annotations

from . import float8, forecast, main_memory, quadratic
from .plain import Keep, KVRows
from .spec import KVFormat

AUTO = "auto"
"""The setting of `kv_cache` with which a run uses the first format whose cache fits into memory, in the order
of `automatic`. Exception: if the sampler corrects past steps and device memory is ample, the run uses
"forecast" (`choose.for_corrected`)."""

GPU = KVFormat(
    name="gpu",
    rows=KVRows,
    nbytes=lambda size: size.plain_nbytes,
    text="the K/V cache of {size} is kept on the device",
    auto_rank=10,
)
OFF = KVFormat(
    name="off",
    rows=None,
    nbytes=lambda size: 0,
    text="no K/V cache: active tokens attend only to each other and to text",
    keeps_addresses=False,
)

FORMATS: dict[str, KVFormat] = {
    each.name: each
    for each in (
        GPU,
        float8.FORMAT,
        main_memory.FORMAT,
        OFF,
        forecast.FORMAT,
        quadratic.FORMAT,
    )
}
"""All formats by name, in the order in which nodes list the settings of `kv_cache`."""


def setting_names() -> tuple[str, ...]:
    """The settings of `kv_cache` that nodes offer, in the order in which the nodes list them."""
    return (AUTO, *(name for name, each in FORMATS.items() if each.is_offered))


def automatic() -> list[KVFormat]:
    """The formats that "auto" may use, in order of preference."""
    ranked = [each for each in FORMATS.values() if each.auto_rank is not None]
    return sorted(ranked, key=lambda each: each.auto_rank)


def first_choice(setting: str) -> KVFormat:
    """The format that a run with this setting of `kv_cache` uses if there is enough memory."""
    return automatic()[0] if setting == AUTO else FORMATS[setting]


def keeper(name: str) -> Keep | None:
    """A function that stores one run's keys and values in this format; None if the format has no cache."""
    rows = FORMATS[name].rows
    return None if rows is None else rows.keeper()
