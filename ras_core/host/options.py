"""Choices that the nodes offer for their inputs, and checks of inputs, from other packages of ras_core."""

from __future__ import annotations

from ..kv.formats import setting_names
from ..method.plan_set import PlanSet
from ..method.preferences import as_priority, check_batch

__all__ = ["PlanSet", "as_priority", "check_batch", "kv_cache_options"]


def kv_cache_options() -> list[str]:
    """The values of the setting `kv_cache`, in the order in which nodes show them."""
    return list(setting_names())
