"""A run's conditionings on the sampling device.

The host keeps them in main memory and sends them to the device at each evaluation. Such memory is not pinned,
so the program then waits until the device has done all it was given, and the device waits for the program:
one evaluation of SD3-medium at 1024 px leaves an H100 idle for 2 to 3 of 58 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

MODEL_CONDS = "model_conds"
"""The host's name, in a conditioning, for what the network gets: objects with a tensor, `cond`, by name."""


def brought(conds: Mapping[str, list[dict]], device: torch.device) -> dict[str, list[dict]]:
    """The same conditionings with what the network gets on the device; those given stay as they are.

    Args:
        conds: of a guider, by name, after the host has encoded them for its model. Lists of tensors, which no
            supported family has, stay where they are.
        device: where the network runs.
    """
    try:
        return {name: [_brought(each, device) for each in group] for name, group in conds.items()}
    except torch.cuda.OutOfMemoryError:  # the host sends them one evaluation after the other
        return dict(conds)


def _brought(conditioning: dict, device: torch.device) -> dict:
    inputs = conditioning.get(MODEL_CONDS)
    if not inputs:
        return conditioning
    return {**conditioning, MODEL_CONDS: {name: _there(each, device) for name, each in inputs.items()}}


def _there(held: Any, device: torch.device) -> Any:
    tensor = getattr(held, "cond", None)
    if not isinstance(tensor, Tensor) or tensor.device == device:
        return held
    there = copy(held)
    there.cond = tensor.to(device)
    return there
