"""Finds other nodes' patches that receive hidden rows of tokens inside a network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

ROW_PATCHES = (
    "attn1_output_patch",
    "attn1_patch",
    "attn2_output_patch",
    "attn2_patch",
    "double_block",
    "mlp_patch",
    "noise_refiner",
    "single_block",
)
"""Keys in the transformer options' dict `patches`. The patches under these keys receive the rows of tokens in
a block or after a block."""


def row_patch(network: nn.Module, options: Mapping[str, Any]) -> str | None:
    """The key of a patch, in these transformer options, that receives rows of tokens in this network; None if
    there is no such patch.
    """
    patches = options.get("patches", {})
    found = {name for name in ROW_PATCHES if patches.get(name)}
    return min(found & names_read(network), default=None) if found else None


def names_read(network: nn.Module) -> frozenset[str]:
    """The keys in `ROW_PATCHES` that occur in the code of this network's modules. Patches under the remaining
    keys have no effect on this network in the installed version of ComfyUI, because no code reads them.
    """
    return frozenset().union(*map(_names_read_by, {type(module) for module in network.modules()}))


@cache
def _names_read_by(kind: type) -> frozenset[str]:
    held = [value for each in kind.__mro__ for value in vars(each).values()]
    read = [value.__code__.co_consts for value in held if isinstance(value, FunctionType)]
    return frozenset(name for name in ROW_PATCHES if any(name in consts for consts in read))
