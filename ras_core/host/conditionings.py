"""Copies a run's conditionings to the sampling device, and finds the reference image that a run edits.

ComfyUI keeps conditionings in main memory and copies them to the device at each evaluation. This memory is
not pinned, so for each copy the CPU waits until the device has finished all enqueued work. Then the device is
idle until the CPU has enqueued more work. In bench/results/2026-11-25-h100, an
evaluation of SD3-medium (one image of 1024 px, positive and negative prompt) takes 58 ms on an H100; for 2 to
3 ms of this time, the device is idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from .names import INPUTS, POSITIVE, REFERENCE_IMAGES


def on_device(conds: Mapping[str, list[dict]], device: torch.device) -> dict[str, list[dict]]:
    """Copies of the conditionings, with the network's inputs on the device; `conds` is left unchanged.

    Args:
        conds: the conditionings of a guider, by name, after ComfyUI has encoded them for the guider's model.
            Inputs that are lists of tensors are those of reference images.
        device: the device that the network runs on.
    """
    try:
        return {name: [_copied(each, device) for each in group] for name, group in conds.items()}
    except torch.cuda.OutOfMemoryError:  # stay in main memory; ComfyUI copies them at each evaluation
        return dict(conds)


def _copied(conditioning: dict, device: torch.device) -> dict:
    inputs = conditioning.get(INPUTS)
    if not inputs:
        return conditioning
    return {**conditioning, INPUTS: {name: _input_copied(each, device) for name, each in inputs.items()}}


def _input_copied(held: Any, device: torch.device) -> Any:
    value = getattr(held, "cond", None)
    tensors = value if isinstance(value, list) and value else [value]
    if not all(isinstance(each, Tensor) and each.device != device for each in tensors):
        return held
    there = copy(held)
    there.cond = [each.to(device) for each in value] if isinstance(value, list) else value.to(device)
    return there


def edited_image(guider: Any, noise: Tensor) -> Tensor | None:
    """The reference image that a run edits, as a latent that compares with denoised estimates, (b or 1, c,
    *size) on the sampling device; None unless the positive conditionings have exactly one reference image,
    and it has the latent's size.

    Args:
        guider: ComfyUI's guider of a run that is about to start.
        noise: (b, c, *size) the noise of the run.
    """
    images = [each for cond in guider.conds.get(POSITIVE, ()) for each in cond.get(REFERENCE_IMAGES) or ()]
    if len(images) != 1 or images[0].shape[1:] != noise.shape[1:]:
        return None
    image = images[0].to(comfy.model_management.get_torch_device())
    if len(image) > 1:
        image = comfy.utils.repeat_to_batch_size(image, len(noise))
    return guider.model_patcher.model.process_latent_in(image)
