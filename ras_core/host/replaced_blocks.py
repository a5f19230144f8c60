"""Observes other nodes' patches that replace blocks of the network.

Such a patch may skip the block (skip-layer guidance), or run it and use its output unchanged. Then it does
the same in a regional call. All other patches may rely on the rows of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..run.observation import ROWS, Observations
from .names import ORIGINAL, PATCHES_REPLACE, REPLACED_BLOCKS

Patch = Callable[[dict, dict], dict]


def with_observed_blocks(options: dict, observations: Observations) -> dict:
    """The same transformer options, with observed patches of blocks."""
    replaced = options[PATCHES_REPLACE]
    observed = {
        name: _observed(patch, name, observations) for name, patch in replaced[REPLACED_BLOCKS].items()
    }
    return {**options, PATCHES_REPLACE: {**replaced, REPLACED_BLOCKS: observed}}


def _observed(patch: Patch, name: Any, observations: Observations) -> Patch:
    block = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
    reason = f"another node's patch of {block} changes its rows, and {ROWS}"

    def run(args: dict, more: dict) -> dict:
        expected = given = _copies(args)

        def original(own: dict) -> dict:
            nonlocal expected
            observations.compare(reason, given, own)
            output = more[ORIGINAL](own)
            expected = given | _copies(output)
            return output

        output = patch(args, {**more, ORIGINAL: original})
        observations.compare(reason, expected, output)
        return output

    return run


def _copies(values: dict) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in values.items() if isinstance(each, Tensor)}
