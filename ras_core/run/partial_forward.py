"""Runs one call of a network in ComfyUI's code, with three interventions that are in force only during it.

gather: before the first block, the image rows of inactive tokens are dropped.
attention: fresh K/V rows are written to the cache, and queries attend to all rows of the cache.
scatter: after the final layer, the output rows are moved back to the positions of their tokens.

The network's own forward code is unchanged: torch hooks make the first and third intervention, and an
attention override makes the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import RegionalAbort
from ..kv import update as kv
from ..kv.extrapolation import Extrapolation
from ..models.base import ModelAdapter
from ..rows import RowIndex, rows_first
from .active_rows import ActiveRows, Borders, borders_of
from .context import DEFAULT, AttentionOverride, CallContext
from .torch_compile import force_eager


@dataclass(frozen=True)
class _AttentionRows:
    """Values that all attentions of a regional call share if they have the same number of rows.

    Attributes:
        borders: number of rows before the rows of active tokens, and after them.
        index: indices, in the whole sequence, of all rows that the call keeps.
        extrapolation: computes the weights that extrapolate cached rows; None if no row is extrapolated.
    """

    borders: Borders
    index: RowIndex
    extrapolation: Extrapolation | None


class NetworkCall:
    """The interventions in one call. A dense call only stores K/V; a regional call gathers rows, updates the
    cache and scatters rows.

    Args:
        adapter: the adapter of the network's family.
        network: ComfyUI's network.
        n_tokens: image tokens of the whole image.
        slots: K/V rows of this call's branches, to fill (dense) or update (regional).
        active_idx: (bb, n_active) int64 for a regional call, None for a dense one.
        context: inputs and settings of the call.

    Attributes:
        gathered: whether image rows have been dropped, so that blocks run on active tokens only.
        frozen_rows: number of rows of reference images, which a regional call does not process.
        text_rows: largest number of rows in any attention that are neither image nor frozen rows.
        blocks_seen, attentions_seen: how many blocks and attentions ran with this pack's hooks.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        network: nn.Module,
        n_tokens: int,
        slots: dict[kv.Slot, kv.KVRows],
        active_idx: Tensor | None = None,
        context: CallContext = DEFAULT,
    ):
        self._adapter, self._network = adapter, network
        self.frozen_rows = context.frozen_rows(adapter, network)
        self._n = n_tokens + self.frozen_rows  # frozen rows follow the image rows, and are never active
        self._slots, self._active_idx, self._context = slots, active_idx, context
        self._grouped = context.grouped if context.override is None else None
        self._suffix = adapter.suffix_rows(network, n_tokens, context.inputs)
        self._rows = None if active_idx is None else ActiveRows(active_idx, self._n, self._suffix)
        self._kv_repeat = adapter.kv_repeat(network)
        self._layer: int | None = None
        self._attention = 0
        self._positions: dict[int, tuple[Tensor, Tensor]] = {}  # by axis: table, its kept rows
        self._extrapolator: Callable[[int, int], Extrapolation] | None = None
        self._attention_rows: dict[int, _AttentionRows] = {}  # by number of rows
        self._hidden_shape: tuple[int, ...] = ()  # axes of the rows in the first block's input
        self.gathered = False
        self.text_rows = 0
        self.blocks_seen = self.attentions_seen = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks for the body of the `with`; remove them after it, also after an error."""
        handles = []
        try:
            for layer, block in enumerate(self._adapter.blocks(self._network)):
                handles.append(block.register_forward_pre_hook(self._before_block(layer), with_kwargs=True))
            for last in self._adapter.refiner_blocks(self._network)[-1:]:
                handles.append(last.register_forward_hook(self._after_refiners))
            final = self._adapter.final_layer(self._network)
            handles.append(final.register_forward_hook(self._after_final))
            self._update_times()
            with force_eager():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def attend(
        self, func: AttentionOverride, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs
    ) -> Tensor:
        """The attention override for ComfyUI. In blocks with hooks, it merges k and v with cached rows."""
        if self._layer is not None:
            self.attentions_seen += 1
            by_head = bool(kwargs.get("skip_reshape"))
            n_fresh = k.shape[2 if by_head else 1]
            k, v = self._with_cache(q, k, v, 2 if by_head else 1)
            if self.gathered:
                args, kwargs = self._with_fitting_mask(n_fresh, args, kwargs)
            if by_head and k.shape[1] != heads:  # K and V are from the cache, with shared heads stored once
                output = self._grouped and self._grouped(func, q, k, v, *args, **kwargs)
                if output is not None:
                    return output
                k, v = self._repeated(k), self._repeated(v)
        if self._context.override is not None:
            return self._context.override(func, q, k, v, heads, *args, **kwargs)
        return func(q, k, v, heads, *args, **kwargs)

    def _with_fitting_mask(self, n_fresh: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """An attention's arguments with a mask whose columns are the keys that the attention reads: without a
        K/V cache, the `n_fresh` keys that the call has computed; otherwise the keys of all rows.
        """
        mask = args[0] if args else kwargs.get("mask")
        if mask is None:
            return args, kwargs
        if self._context.keep is None:
            mask = self._rows.short_mask(mask, n_fresh)
        elif self._adapter.builds_masks and mask.shape[-1] == n_fresh:
            mask = self._rows.wide_mask(mask)
        return ((mask, *args[1:]), kwargs) if args else (args, {**kwargs, "mask": mask})

    def _update_times(self) -> None:
        sigma = self._context.sigma
        if self._active_idx is not None:
            spread_over = self._context.spread_over
            self._extrapolator = kv.extrapolator(self._slots, sigma, self._active_idx, spread_over)
        elif sigma is not None:
            kv.update_times(self._slots, sigma, self._n, self._context.times)

    def _before_block(self, layer: int) -> Callable[..., Any]:
        is_dense, change = self._active_idx is None, self._adapter.map_block_inputs

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            self._layer, self._attention = layer, 0
            self.blocks_seen += 1
            if is_dense:
                return None
            # Only the first block that runs needs its input gathered: later blocks receive short input.
            gather_hidden = None if self.gathered else self._gather_hidden
            return change(args, kwargs, gather_hidden, self._gather_positions)

        return hook

    def _gather_hidden(self, hidden: Tensor) -> Tensor:  # (bb, r, d) -> (bb, r_kept, d)
        self._hidden_shape = tuple(hidden.shape[1:-1])  # (r,); (t, h, w) if rows keep the shape of the grid
        rows = hidden.flatten(1, -2)
        borders = borders_of(rows.shape[1], self._n, self._suffix, "the first block's input")
        has_stray_rows = borders[0] > 0 and not self._adapter.text_in_hidden
        if hidden.shape[0] != len(self._active_idx) or has_stray_rows:
            others = " and rows of reference images" if self.frozen_rows else ""
            found = f"{rows.shape[1]} rows (a batch of {len(rows)})"
            raise RegionalAbort(f"the first block received {found}, not {self._n} image tokens{others}")
        self.gathered = True
        kept = self._rows.gather(rows, borders)
        return kept if hidden.ndim == 3 else kept.view(len(kept), 1, 1, *kept.shape[1:])

    def _gather_positions(self, table: Any, axis: int = 1) -> Any:
        """Gather a position table along `axis`: (bb or 1, ..., r, ...) -> (bb, ..., r_kept, ...). Of a tuple,
        only the first entry is a table.
        """
        if isinstance(table, tuple):
            return (self._gather_positions(table[0], axis), *table[1:])
        known = self._positions.get(axis)
        if known is None or known[0] is not table:
            known = self._positions[axis] = (table, self._rows.gather_table(table, axis))
        return known[1]

    def _after_final(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Restore the full number of rows, with zeros at cached tokens: (bb, r_kept, d) -> (bb, r, d)."""
        if not self.gathered:
            return None
        whole = self._rows.scatter(output.flatten(1, -2))
        return whole.unflatten(1, self._hidden_shape) if output.ndim > 3 else whole

    def _after_refiners(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Restore all rows after the last refiner (block without text), before text and image are joined."""
        whole = self._after_final(module, args, output)
        self.gathered = False  # the first main block gathers again, from text and image rows together
        return whole

    def _with_cache(self, q: Tensor, k: Tensor, v: Tensor, token_axis: int) -> tuple[Tensor, Tensor]:
        slot = (self._layer, self._attention)
        self._attention += 1
        if slot[1] in self._adapter.cross_attentions:
            self.text_rows = max(self.text_rows, k.shape[token_axis])
            return k, v
        rows = q.shape[token_axis]
        if k.shape[token_axis] != rows:
            found = f"{rows} query rows, but {k.shape[token_axis]} key rows"
            raise RegionalAbort(f"attention {slot[1]} of block {slot[0]} has {found}")
        if not self.gathered or self._context.keep is None:
            return self._from_call(slot, k, v, token_axis)
        known = self._attention_rows.get(rows) or self._rows_of_attention(rows)
        fresh = k, v
        if token_axis == 2:
            fresh = rows_first(k, self._kv_repeat), rows_first(v, self._kv_repeat)
        whole = kv.update(self._slots, slot, fresh, known.borders, known.index, known.extrapolation)
        return whole if token_axis == 1 else self._slots[slot].heads_first(whole)

    def _from_call(self, slot: kv.Slot, k: Tensor, v: Tensor, token_axis: int) -> tuple[Tensor, Tensor]:
        """Return k and v for an attention that does not read the cache. A dense call also caches k and v."""
        borders = self._borders_of_attention(k.shape[token_axis])
        if self._context.keep is not None:
            by_head = token_axis == 2
            key, value = (rows_first(t, self._kv_repeat) if by_head else t for t in (k, v))
            kv.fill(self._slots, slot, (key, value), borders, self._context.keep)
        return k, v

    def _borders_of_attention(self, rows: int) -> Borders:
        name = f"an attention of block {self._layer}"
        if self.gathered:
            borders = self._rows.short_borders(rows, name)
        else:
            borders = borders_of(rows, self._n, self._suffix, name)
        self.text_rows = max(self.text_rows, sum(borders))
        return borders

    def _rows_of_attention(self, rows: int) -> _AttentionRows:
        borders = self._borders_of_attention(rows)
        extrapolation = self._extrapolator and self._extrapolator(*borders)
        self._attention_rows[rows] = known = _AttentionRows(borders, self._rows.index(borders), extrapolation)
        return known

    def _repeated(self, t: Tensor) -> Tensor:  # (bb, kv_heads, r, e) -> (bb, heads, r, e)
        return t.movedim(1, 2).repeat_interleave(self._kv_repeat, dim=2).movedim(2, 1)
