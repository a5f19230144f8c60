"""Observes other nodes' patches that replace blocks of the network, to decide whether they allow regional
calls.

A patch that replaces a block may skip this block (skip-layer guidance), or run the block and return the
block's output unchanged. Such a patch does the same in a regional call, so regional calls are allowed. A
patch that does anything else may rely on the rows of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..run.observation import ROWS, Observations
from .names import ORIGINAL, PATCHES_REPLACE, REPLACED_BLOCKS

Patch = Callable[[dict, dict], dict]


def with_observed_blocks(options: dict, observations: Observations) -> dict:
    """The transformer options, with each patch that replaces a block wrapped so that `observations` compares
    its inputs and outputs with those of the block.
    """
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
