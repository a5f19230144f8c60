"""Filling and updating the K/V cache of one call, attention by attention."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..errors import RegionalAbort
from ..rows import Pair, RowIndex
from .extrapolation import TIMES, Extrapolation, Times
from .plain import Keep, KVRows, Slot, Slots
from .spread import LEAST_SHARE, Spread


def fill(slots: Slots, slot: Slot, pair: Pair, borders: tuple[int, int], keep: Keep = KVRows.of) -> None:
    """Keep the key and value of a dense call, (bb, r, ...) each.

    Args:
        slots, slot: where to keep them; rows of an earlier call are overwritten if they fit.
        pair: key and value.
        borders: rows of text before and of padding after the image rows.
        keep: the format's keeper (kv/formats.py).
    """
    kept = slots.get(slot)
    if kept is not None and kept.fits(*pair, borders[0]):
        kept.write(*pair)
    else:
        slots[slot] = keep(*pair, *borders)


def update(
    slots: Slots,
    slot: Slot,
    fresh: Pair,
    borders: tuple[int, int],
    index: RowIndex,
    extrapolation: Extrapolation | None = None,
) -> Pair:
    """Write a regional call's fresh rows over the cached ones and return the whole key and value.

    Args:
        slots, slot: where the cached rows are.
        fresh: key and value of [prefix | active | suffix], (bb, r_kept, ...) each.
        borders: rows of text before and of padding after the image rows in this call.
        index: indices of these rows in the whole sequence.
        extrapolation: how far to extrapolate cached rows; None if the format does not extrapolate.

    Returns:
        (bb, prefix + n + suffix, ...) each; read them before the call's next `update`, which may overwrite
        them.

    Raises:
        RegionalAbort: no dense call has filled this attention.
    """
    rows = slots.get(slot)
    if rows is None:
        raise RegionalAbort(f"attention {slot} has no cached keys and values")
    if (rows.prefix, rows.suffix) != borders:
        rows = slots[slot] = rows.with_borders(*borders)
    if extrapolation is None:
        whole = rows.update(index, fresh)
    else:
        whole = rows.update_extrapolated(index, fresh, extrapolation)
    if rows.is_fetched and (following := _after(slots, slot)) is not None:
        following.prefetch()
    return whole


def update_times(slots: Slots, sigma: Tensor, n_tokens: int, times: type[Times] = Times) -> None:
    """Record that a dense call at `sigma`, (bb,), evaluates all tokens; the first one creates `times`."""
    if TIMES not in slots:
        slots[TIMES] = times.start(sigma, n_tokens)
    slots[TIMES].update_all(sigma)


def extrapolation_weights(slots: Slots, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor] | None:
    """Record that a regional call at `sigma`, (bb,), evaluates the tokens of `active_idx`, (bb, n_active).

    Returns:
        As `Times.update_active`; None if the format does not extrapolate.
    """
    times = slots.get(TIMES)
    return None if times is None else times.update_active(sigma, active_idx)


def extrapolator(
    slots: Slots, sigma: Tensor, active_idx: Tensor, spread_over: tuple[int, ...] | None = None
) -> Callable[[int, int], Extrapolation] | None:
    """As `extrapolation_weights`; returns how far rows are extrapolated, as a function of an attention's rows
    before and after the image.

    Args:
        spread_over: tokens along each axis, if errors of active tokens are spread to cached ones
            (kv/spread.py).
    """
    times, spread = slots.get(TIMES), None
    is_enough = spread_over is not None and active_idx.shape[1] >= LEAST_SHARE * math.prod(spread_over)
    if times is not None and is_enough:
        spread = Spread(spread_over, active_idx, times.ages(sigma))
    weights = extrapolation_weights(slots, sigma, active_idx)
    if weights is None:
        return None
    return lambda prefix, suffix: times.extrapolation(*weights, prefix, suffix, spread)


def _after(slots: Slots, slot: Slot) -> KVRows | None:
    """The rows of the next attention: dense calls fill slots in the order of the attentions."""
    order = iter(slots)
    next(each for each in order if each == slot)
    return slots[following] if (following := next(order, None)) is not None else None
