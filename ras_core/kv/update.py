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
from .triton_check import SPREAD, kernels_for


def fill(slots: Slots, slot: Slot, pair: Pair, borders: tuple[int, int], keep: Keep = KVRows.of) -> None:
    """Add the key and value of one attention of a dense call, (bb, r, ...) each, to the cache.

    Args:
        slots, slot: the key and value are kept in `slots[slot]`; if rows of the same shape are already there,
            these are overwritten.
        pair: key and value.
        borders: number of text rows before and of padding rows after the image rows.
        keep: the function with which the K/V format keeps a key and a value (`plain.Keep`).
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
        slots, slot: the attention's cached rows are in `slots[slot]`.
        fresh: key and value of [prefix | active | suffix], (bb, r_kept, ...) each.
        borders: number of text rows before and of padding rows after the image rows in this call.
        index: indices of the fresh rows among all rows [prefix | image | suffix].
        extrapolation: how far to extrapolate cached rows; None if the format does not extrapolate.

    Returns:
        The key and the value of all rows, (bb, prefix + n + suffix, ...) each. The caller must read both
        before the call's next `update`, which may overwrite them.

    Raises:
        RegionalAbort: no dense call has filled the cache of this attention.
    """
    rows = slots.get(slot)
    if rows is None:
        raise RegionalAbort(f"attention {slot[1]} of block {slot[0]} did not run in the last dense step")
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
    """Store that a dense call at noise level `sigma`, (bb,), evaluates all tokens. If `slots` has no object
    of class `times` yet, one is created.
    """
    if TIMES not in slots:
        slots[TIMES] = times.start(sigma, n_tokens)
    slots[TIMES].update_all(sigma)


def extrapolation_weights(slots: Slots, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor] | None:
    """Store that a regional call at noise level `sigma`, (bb,), evaluates the tokens of `active_idx`, (bb,
    n_active).

    Returns:
        The forecast changes of all tokens and of the active tokens, as `Times.update_active` returns them;
        None if the K/V format does not extrapolate.
    """
    times = slots.get(TIMES)
    return None if times is None else times.update_active(sigma, active_idx)


def extrapolator(
    slots: Slots, sigma: Tensor, active_idx: Tensor, spread_over: tuple[int, ...] | None = None
) -> Callable[[int, int], Extrapolation] | None:
    """Stores when tokens are evaluated, as `extrapolation_weights` does. Returns a function that creates an
    `Extrapolation` for given numbers of text and padding rows; None if the format does not extrapolate.

    Args:
        spread_over: if forecast errors of active tokens are to be spread to cached tokens (kv/spread.py), the
            number of tokens along each axis of the image; otherwise None. Rows of reference images, which
            follow the image's rows, are not corrected.
    """
    times, spread = slots.get(TIMES), None
    n = 0 if spread_over is None else math.prod(spread_over)
    if times is not None and n and active_idx.shape[1] >= LEAST_SHARE * n and _spreads_fast(slots):
        spread = Spread(spread_over, active_idx, times.ages(sigma)[:, :n].contiguous())
    weights = extrapolation_weights(slots, sigma, active_idx)
    if weights is None:
        return None
    return lambda prefix, suffix: times.extrapolation(*weights, prefix, suffix, spread)


def _spreads_fast(slots: Slots) -> bool:
    """Whether forecast errors can be spread at little cost. On a GPU, PyTorch's operations need twelve times
    as long as the Triton kernels (tests/gpu/test_gpu_forecasts.py): more than the correction is worth.
    """
    rows = next((rows for slot, rows in slots.items() if slot != TIMES), None)
    if rows is None:  # no attention is cached
        return True
    key, value = rows.tensors[:2]
    return key.device.type == "cpu" or kernels_for(key, value, SPREAD) is not None


def _after(slots: Slots, slot: Slot) -> KVRows | None:
    """The cached rows of the attention after `slot`, or None after the last attention. Dense calls add the
    attentions to the dictionary `slots` in the order in which they run, so the next key is the next
    attention.
    """
    order = iter(slots)
    next(each for each in order if each == slot)
    return slots[following] if (following := next(order, None)) is not None else None
