"""Write checkpoint and LoRA files for ComfyUI's loader nodes, with the layer sizes of real models and random
weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .shapes import Shape, free
from .tensor_file import write_tensors

BLOCKS = ("joint_blocks.", "layers.", "double_blocks.", "single_blocks.", "transformer_blocks.", "blocks.")
"""Prefixes of the parameter names of main blocks, in the families that ComfyUI's loader detects."""

MODULATION = ("adaLN", "adaln_", "_mod.", "modulation.")
"""The name of each modulation layer contains one of these texts."""

LORA_RANK = 16
LORA_SCALE = 0.3
"""Standard deviation of the product of a random LoRA's two matrices, divided by that of the weight it
changes."""


@dataclass(frozen=True)
class Quantised:
    """One of ComfyUI's quantised weight layouts.

    Attributes:
        format: the layout's name in a checkpoint and in comfy.quant_ops.
        options: arguments of the layout's `quantize`.
        extra: further keys of each quantised layer's entry in the checkpoint's metadata.
        multiple: only layers whose widths are multiples of this number are quantised.
    """

    format: str
    options: Mapping[str, Any]
    extra: Mapping[str, Any]
    multiple: int = 16


QUANTISED = {
    "scaled_fp8": Quantised("float8_e4m3fn", {"scale": "recalculate"}, {}),
    "int8": Quantised("int8_tensorwise", {}, {}),
    "int8_convrot": Quantised(
        "int8_tensorwise",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 256},
        {"convrot": True, "convrot_groupsize": 256},
        multiple=256,
    ),
}


def make_files(
    shape: Shape, wanted: Mapping[str, Path], device: torch.device, seed: int = 0
) -> dict[str, str]:
    """Write the files of a network.

    Args:
        shape: shape of the network.
        wanted: paths of the files to write, by kind of weights: "default", "lora" or a key of QUANTISED.
        device: the device that generates the weights.
        seed: seed of the weights.

    Returns:
        Error messages by kind, for the kinds whose file could not be written.
    """
    network = shape.network(device, seed)
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    failed = {}
    with torch.inference_mode():
        for kind, path in wanted.items():
            try:
                _make(kind, path, tensors, device)
            except Exception as error:
                failed[kind] = f"{type(error).__name__}: {error}"[:300]
                path.unlink(missing_ok=True)
    del network, tensors
    free()
    return failed


def _make(kind: str, path: Path, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    if kind == "default":
        write_tensors(path, tensors)
    elif kind == "lora":
        write_tensors(path, dict(_lora(tensors, device)))
    else:
        write_tensors(path, *_quantised(tensors, QUANTISED[kind]))


def main_layers(tensors: Mapping[str, Tensor], multiple: int = 16) -> list[str]:
    """Names of the linear layers in the main blocks that LoRAs and quantised checkpoints change: attention
    and feed-forward, but not modulation.
    """
    return [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.startswith(BLOCKS) and name.endswith(".weight") and tensor.ndim == 2
        if not any(part in name for part in MODULATION) and all(size % multiple == 0 for size in tensor.shape)
    ]


def _lora(tensors: Mapping[str, Tensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator(device).manual_seed(1)
    for layer in main_layers(tensors):
        weight = tensors[f"{layer}.weight"]
        up = torch.empty(weight.shape[0], LORA_RANK, dtype=weight.dtype, device=device)
        down = torch.empty(LORA_RANK, weight.shape[1], dtype=weight.dtype, device=device)
        # The weights' standard deviation is 1 / sqrt(width); that of up @ down is LORA_SCALE times as large.
        up.normal_(0.0, LORA_SCALE / LORA_RANK**0.5, generator=generator)
        down.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
        name = f"diffusion_model.{layer}"
        yield f"{name}.lora_up.weight", up
        yield f"{name}.lora_down.weight", down
        yield f"{name}.alpha", torch.tensor(float(LORA_RANK))


def _quantised(tensors: Mapping[str, Tensor], how: Quantised) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a checkpoint to one of ComfyUI's quantised layouts; returns its tensors and the file's
    metadata.
    """
    from comfy import quant_ops

    layout = quant_ops.get_layout_class(quant_ops.QUANT_ALGOS[how.format]["comfy_tensor_layout"])
    found, layers = dict(tensors), main_layers(tensors, how.multiple)
    for layer in layers:
        data, params = layout.quantize(tensors[f"{layer}.weight"], **how.options)
        found |= {f"{layer}.weight": data, f"{layer}.weight_scale": params.scale}
    about = {"format_version": "1.0", "layers": dict.fromkeys(layers, {"format": how.format, **how.extra})}
    return found, {"_quantization_metadata": json.dumps(about)}
