"""Gathers a ControlNet's residuals, so that a regional call adds them to the rows of active tokens only."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from ..errors import RegionalAbort
from ..rows import gather_rows, row_index


def gathered_lists(control: dict, lists: Collection[str], active_idx: Tensor, n_tokens: int) -> dict:
    """A ControlNet's residuals for the active tokens only.

    Args:
        control: lists of residuals by name; a residual is (bb, n, d), or None.
        lists: names of the lists whose residuals are for image rows.
        active_idx: (bb, n_active) int64.
        n_tokens: image tokens of the whole image.

    Raises:
        RegionalAbort: the residuals have an unknown form.
    """
    unknown = [name for name, each in control.items() if each and name not in lists]
    if unknown:
        raise RegionalAbort(f"a ControlNet has residuals of an unknown kind: {unknown}")
    flat_idx = row_index(active_idx, n_tokens, 0, 0)
    return control | {
        name: [_active_rows(each, flat_idx, active_idx, n_tokens) for each in control[name]]
        for name in lists
        if control.get(name)
    }


def _active_rows(
    residual: Tensor | None, flat_idx: Tensor, active_idx: Tensor, n_tokens: int
) -> Tensor | None:
    if residual is None:
        return None
    if residual.ndim != 3 or residual.shape[:2] != (active_idx.shape[0], n_tokens):
        found = f"{residual.shape[1]} rows" if residual.ndim == 3 else f"shape {tuple(residual.shape[1:])}"
        wanted = f"{n_tokens} image tokens (a batch of {len(active_idx)})"
        raise RegionalAbort(f"a ControlNet's residual has {found} (a batch of {len(residual)}), not {wanted}")
    return gather_rows(residual, flat_idx)
