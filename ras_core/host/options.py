"""Choices of node inputs that other packages define."""

from __future__ import annotations

from ..kv.formats import setting_names


def kv_cache_options() -> list[str]:
    """Settings of `kv_cache`, in the order that the nodes offer them."""
    return list(setting_names())
