"""Choices that the nodes offer for their inputs, taken from other packages of ras_core."""

from __future__ import annotations

from ..kv.formats import setting_names


def kv_cache_options() -> list[str]:
    """The values of the setting `kv_cache`, in the order in which nodes show them."""
    return list(setting_names())
