"""Gathers a ControlNet's residuals, so that a regional call adds them to the rows of active tokens only."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from types import FunctionType

from torch import Tensor, nn

from ..errors import RegionalAbort
from ..rows import gather_rows, row_index

LISTS = ("input", "middle", "output")
"""Names of the lists of residuals that ComfyUI's ControlNets make."""


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


def ignored_lists(network: nn.Module, control: dict | None) -> list[str]:
    """Names of the lists with residuals that the network does not read, so that they have no effect: their
    names do not occur in the code of its modules.
    """
    given = {name for name, each in (control or {}).items() if any(part is not None for part in each or ())}
    if not given:  # the search for what the network reads takes milliseconds
        return []
    return sorted(given - frozenset().union(*map(_lists_read_by, {type(each) for each in network.modules()})))


@cache
def _lists_read_by(kind: type) -> frozenset[str]:
    own = [each for each in kind.__mro__ if not each.__module__.startswith(("torch.", "builtins"))]
    held = [value for each in own for value in vars(each).values()]
    read = [value.__code__.co_consts for value in held if isinstance(value, FunctionType)]
    return frozenset(name for name in LISTS if any(name in consts for consts in read))


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
