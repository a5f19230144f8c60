"""Inputs and settings of one call of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor, nn

from ..errors import RegionalAbort
from ..kv import update as kv
from ..kv.extrapolation import Times
from ..models.base import Inputs, ModelAdapter
from .grouped_attention import GroupedAttention

AttentionOverride = Callable[..., Tensor]


@dataclass(frozen=True)
class CallContext:
    """Inputs and settings of one network call.

    Attributes:
        inputs: inputs of ComfyUI's model by name, which the adapter reads.
        sigma: (bb,) noise level; needed only if the cache extrapolates its rows.
        keep: stores a dense call's K/V; None without a cache; active tokens then attend only to each other.
        override: another node's attention override (SageAttention and others), or None.
        grouped: an attention that does not repeat the cache's K/V heads, or None.
        times: class that stores when each token was evaluated, for a cache that extrapolates its rows.
        spread_over: size of the token grid if kv/spread.py corrects extrapolated rows, otherwise None.
    """

    inputs: Inputs = field(default_factory=dict)
    sigma: Tensor | None = None
    keep: kv.Keep | None = kv.KVRows.of
    override: AttentionOverride | None = None
    grouped: GroupedAttention | None = None
    times: type[Times] = Times
    spread_over: tuple[int, ...] | None = None

    def frozen_rows(self, adapter: ModelAdapter, network: nn.Module) -> int:
        """Number of rows that only dense calls process.

        Raises:
            RegionalAbort: there are such rows, but no cache from which regional calls could take their keys
                and values.
        """
        found = adapter.frozen_rows(network, self.inputs)
        if found and self.keep is None:
            raise RegionalAbort("a run with reference images needs a K/V cache")
        return found


DEFAULT: Final = CallContext()
