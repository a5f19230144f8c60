"""One call of the host's own network, with the three interventions placed around it and taken away again.

gather     before the first block only the active image tokens stay;
attention  fresh K/V rows are written into the cache, and the whole cache is attended to;
scatter    the final layer's rows go back to their places.

The network's forward is the host's. torch's own hooks do the rest, for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RegionalAbort
from ..kv import store as kv
from ..kv.forecast import Ahead
from ..models.base import ModelAdapter
from ..rows import Places, Scratch, gather_rows, rows_first, scatter_rows
from .grouped_attention import GroupedAttention
from .torch_compile import as_written

AttentionOverride = Callable[..., Tensor]


@dataclass(frozen=True)
class _Borders:
    """What a regional call's attentions with the same number of rows have in common.

    Attributes:
        rows: numbers of text rows before and of padding rows after the active tokens.
        places: indices of all these rows in the whole sequence.
        ahead: how far cached rows are extrapolated; None if the cache does not extrapolate.
    """

    rows: tuple[int, int]
    places: Places
    ahead: Ahead | None


class NetworkCall:
    """What happens to one call; `dense` ones only read K/V, regional ones gather, update and scatter.

    Args:
        adapter: what this kind of network looks like.
        network: the host's network.
        n_tokens: image tokens of the whole picture.
        slots: K/V sequences of this call's branches, to fill (dense) or to update (regional).
        active_idx: (bb, n_active) int64 for a regional call, None for a dense one.
        inner_override: an attention override that was there before ours (SageAttention nodes and others).
        keep: how a dense call's K/V are kept; None keeps none, and active tokens attend among themselves.
        grouped: attends to cached K/V heads without repeating them, where it can.
        sigma: (bb,) noise level, for a cache whose rows are continued; None for a dense call to others.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        network: nn.Module,
        n_tokens: int,
        slots: dict[kv.Slot, kv.Sequence],
        active_idx: Tensor | None = None,
        inner_override: AttentionOverride | None = None,
        keep: kv.Keep | None = kv.Sequence.of,
        grouped: GroupedAttention | None = None,
        sigma: Tensor | None = None,
    ):
        self._adapter = adapter
        self._network = network
        self._n = n_tokens
        self._slots = slots
        self._active_idx = active_idx
        self._inner = inner_override
        self._keep = keep
        self._grouped = grouped if inner_override is None else None
        self._suffix = adapter.suffix_rows(network, n_tokens)
        self._kv_repeat = adapter.kv_repeat(network)
        self._layer: int | None = None
        self._attention = 0
        self._hidden: tuple[int, Tensor] | None = None  # rows of the whole sequence, their flat index
        self._positions: tuple[Tensor, Tensor] | None = (
            None  # last position tensor seen, and its gathered rows
        )
        self._sigma = sigma
        self._weights: tuple[Tensor, Tensor] | None = None  # for continuing cached rows
        self._places: dict[int, Places] = {}  # by number of text rows
        self._borders: dict[int, _Borders] = {}  # by number of rows in a regional attention
        self._scratch = Scratch()
        self.text_rows = 0
        self.blocks_seen = self.attentions_seen = 0

    @property
    def gathered(self) -> bool:
        """Whether the blocks really run on the active tokens only."""
        return self._hidden is not None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are attached for the body, and removed afterwards whatever happened in it."""
        handles = []
        try:
            for layer, block in enumerate(self._adapter.blocks(self._network)):
                handles.append(block.register_forward_pre_hook(self._before_block(layer), with_kwargs=True))
            for last in self._adapter.refiner_blocks(self._network)[-1:]:
                handles.append(last.register_forward_hook(self._after_refiners))
            final = self._adapter.final_layer(self._network)
            handles.append(final.register_forward_hook(self._after_final))
            self._pass_time()
            with as_written():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def attend(
        self, func: AttentionOverride, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs
    ) -> Tensor:
        """The host's attention override: pass on, with the cache merged in for the blocks."""
        if self._layer is not None:
            self.attentions_seen += 1
            by_head = bool(kwargs.get("skip_reshape"))
            k, v = self._with_cache(q, k, v, 2 if by_head else 1)
            if self._keep is None and self.gathered:
                args, kwargs = self._with_short_mask(k.shape[2 if by_head else 1], args, kwargs)
            if by_head and k.shape[1] != heads:  # from the cache, where shared heads are kept once
                output = self._grouped and self._grouped(func, q, k, v, *args, **kwargs)
                if output is not None:
                    return output
                k, v = self._repeated(k), self._repeated(v)
        if self._inner is not None:
            return self._inner(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    def _with_short_mask(self, n_keys: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The mask of an attention, (bb or 1, ..., r), for active tokens among themselves; one that is for
        `n_keys` rows already, as of another attention, is left as it is.
        """
        mask = args[0] if args else kwargs.get("mask")
        rows, flat_idx = self._hidden
        if mask is None or mask.shape[-1] != rows or n_keys == rows:
            return args, kwargs
        places = flat_idx.view(self._active_idx.shape[0], -1) % rows
        places = places.view(len(places), *[1] * (mask.ndim - 2), -1)
        short = torch.take_along_dim(mask, places, dim=-1)
        return ((short, *args[1:]), kwargs) if args else (args, {**kwargs, "mask": short})

    def _pass_time(self) -> None:
        if self._active_idx is not None:
            self._weights = kv.weights_ahead(self._slots, self._sigma, self._active_idx)
        elif self._sigma is not None:
            kv.pass_time(self._slots, self._sigma, self._n)

    def _before_block(self, layer: int) -> Callable[..., Any]:
        is_dense, change = self._active_idx is None, self._adapter.map_block_inputs
        positions = self._gather_positions

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            self._layer, self._attention = layer, 0
            self.blocks_seen += 1
            if is_dense:
                return None
            # Gather rows for the first block that runs; later blocks get what it returns.
            return change(args, kwargs, self._gather_hidden if self._hidden is None else None, positions)

        return hook

    def _gather_hidden(self, hidden: Tensor) -> Tensor:  # (bb, r, d) -> (bb, r_kept, d)
        rows = hidden.shape[1]
        prefix = rows - self._n - self._suffix
        if (
            hidden.shape[0] != self._active_idx.shape[0]
            or prefix < 0
            or (prefix and not self._adapter.text_in_hidden)
        ):
            raise RegionalAbort(
                f"the first block got rows of shape {tuple(hidden.shape)}, not {self._n} image tokens"
            )
        self._hidden = (rows, self._places_for(prefix).flat)
        return gather_rows(hidden, self._hidden[1])

    def _gather_positions(self, positions: Tensor) -> Tensor:  # (bb or 1, r, ...) -> (bb, r_kept, ...)
        if self._positions is None or self._positions[0] is not positions:
            rows, flat_idx = self._hidden
            if positions.shape[1] != rows:
                raise RegionalAbort(f"positions of shape {tuple(positions.shape)} do not fit {rows} rows")
            whole = positions.expand(self._active_idx.shape[0], *positions.shape[1:])
            self._positions = (positions, gather_rows(whole, flat_idx))
        return self._positions[1]

    def _after_final(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Whole rows for the host again, zeros at cached tokens: (bb, r_kept, d) -> (bb, r, d)."""
        if not self.gathered:
            return None
        rows, flat_idx = self._hidden
        return scatter_rows(output, flat_idx, rows)

    def _after_refiners(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """The same: the host puts text in front of these rows, and the first main block gathers anew."""
        whole = self._after_final(module, args, output)
        self._hidden = None
        return whole

    def _with_cache(self, q: Tensor, k: Tensor, v: Tensor, token_axis: int) -> tuple[Tensor, Tensor]:
        slot = (self._layer, self._attention)
        self._attention += 1
        if slot[1] in self._adapter.cross_attentions:
            self.text_rows = max(self.text_rows, k.shape[token_axis])
            return k, v
        rows = q.shape[token_axis]
        if k.shape[token_axis] != rows:
            raise RegionalAbort(f"attention {slot} got {rows} query and {k.shape[token_axis]} key rows")
        if self._hidden is None or self._keep is None:
            return self._from_call(slot, k, v, token_axis)
        borders = self._borders.get(rows) or self._borders_of(rows)
        fresh = k, v
        if token_axis == 2:
            fresh = rows_first(k, self._kv_repeat), rows_first(v, self._kv_repeat)
        whole = kv.update(
            self._slots, slot, fresh, self._active_idx, self._n, borders.rows, borders.places, borders.ahead
        )
        return whole if token_axis == 1 else self._slots[slot].heads_first(whole)

    def _from_call(self, slot: kv.Slot, k: Tensor, v: Tensor, token_axis: int) -> tuple[Tensor, Tensor]:
        """K and V of an attention that reads nothing from the cache; in a dense call they fill it."""
        prefix = self._prefix_of(k.shape[token_axis])
        if self._keep is not None:
            by_head = token_axis == 2
            key, value = (rows_first(t, self._kv_repeat) if by_head else t for t in (k, v))
            kv.fill(self._slots, slot, key, value, prefix, self._suffix, self._keep)
        return k, v

    def _prefix_of(self, rows: int) -> int:
        """Number of text rows in an attention with this many rows."""
        here = self._n if self._hidden is None else self._active_idx.shape[1]
        prefix = rows - here - self._suffix
        if prefix < 0:
            raise RegionalAbort(f"an attention of block {self._layer} got {rows} rows for {here} tokens")
        self.text_rows = max(self.text_rows, prefix)
        return prefix

    def _borders_of(self, rows: int) -> _Borders:
        prefix = self._prefix_of(rows)
        ahead = None if self._weights is None else Ahead(*self._weights, prefix, self._suffix)
        self._borders[rows] = borders = _Borders((prefix, self._suffix), self._places_for(prefix), ahead)
        return borders

    def _places_for(self, prefix: int) -> Places:
        if prefix not in self._places:
            self._places[prefix] = Places.of(self._active_idx, self._n, prefix, self._suffix, self._scratch)
        return self._places[prefix]

    def _repeated(self, t: Tensor) -> Tensor:  # (bb, kv_heads, r, e) -> (bb, heads, r, e)
        return t.movedim(1, 2).repeat_interleave(self._kv_repeat, dim=2).movedim(2, 1)
