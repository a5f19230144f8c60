"""Choices for inputs of nodes, from other packages of ras_core."""

from __future__ import annotations

from ..kv.formats import setting_names


def kv_cache_options() -> list[str]:
    """Settings of `kv_cache`, in the order in which nodes show them."""
    return list(setting_names())
