"""A tiny SD3 whose weights come from a seed, and the inputs of the paper's reference runs with it.

The model is ComfyUI's own MMDiT class with few and narrow blocks, so ComfyUI's real forward runs on the
CPU within milliseconds. Its weights are random, but it behaves like a velocity model: outputs are of order
one, every modulation and gate is non-zero, and the size of the output clearly differs between tokens.
`tests/data/README.md` describes how the reference runs were made.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

HEAD_DIM = 64  # fixed by ComfyUI's MMDiT: hidden width = 64 * number of heads
LATENT_CHANNELS = 16
PATCH_SIZE = 2
CONTEXT_DIM = 64
POOLED_DIM = 64
POS_EMBED_MAX_SIZE = 32  # the largest token grid is 32x32, a 64x64 latent
TIMESTEP_FREQUENCIES = 256  # fixed by ComfyUI's MMDiT

REFERENCE_SETS = Path(__file__).parents[1] / "data" / "reference_sets.npz"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ReferenceRun:
    """One stored run of the paper's implementation; the run `dense` is the same pipeline without RAS."""

    sample_ratio: float
    high_ratio: float  # share of the cached tokens that is taken from the high end of the ranking
    starvation_scale: float
    start_step: int
    end_step: int  # equal to the number of steps: the last step is regional too
    error_reset_steps: tuple[int, ...]
    guidance: float
    sigmas: torch.Tensor  # (15,) float32, from 1 to 0
    active: torch.Tensor  # (14, 256) bool, row-major 16x16 tokens; a dense step is all True
    final_latent: torch.Tensor  # (1, 16, 32, 32) in model space, before the latent format's `process_out`


def tiny_sd3_unet_config(*, heads: int = 2, blocks: int = 3) -> dict[str, Any]:
    """The `unet_config` with which `comfy.supported_models.SD3` builds the model of `tiny_sd3_state_dict`."""
    width = HEAD_DIM * heads
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "patch_size": PATCH_SIZE,
        "input_size": None,
        "depth": heads,
        "num_blocks": blocks,
        "adm_in_channels": POOLED_DIM,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": CONTEXT_DIM, "out_features": width},
        },
        "num_patches": POS_EMBED_MAX_SIZE**2,
        "pos_embed_max_size": POS_EMBED_MAX_SIZE,
        "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": [],
        "dtype": torch.float32,
    }


def tiny_sd3_state_dict(seed: int = 0, *, heads: int = 2, blocks: int = 3) -> dict[str, torch.Tensor]:
    """Float32 weights in ComfyUI's MMDiT names, the same on every machine for a given seed.

    They are generated in sorted key order from one CPU generator by `torch.rand`, whose bits do not depend on
    the CPU's vector width. With `blocks == heads` a file of them also loads in ComfyUI, whose detection
    infers the number of blocks from the width.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shapes = _parameter_shapes(heads, blocks)
    weights = {key: _draw(key, shapes[key], generator) for key in sorted(shapes)}
    weights["pos_embed"] = _position_table(HEAD_DIM * heads)
    return weights


def build_tiny_sd3(seed: int = 0, *, heads: int = 2, blocks: int = 3) -> ModelPatcher:
    """A ComfyUI `ModelPatcher` around the tiny model on the CPU: model type FLOW, shift 3, float32.

    ComfyUI must be importable. If its device management is not loaded yet, it is set to use the CPU.
    """
    if "comfy.model_management" not in sys.modules:
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
    import comfy.model_patcher
    import comfy.supported_models

    cpu = torch.device("cpu")
    model_config = comfy.supported_models.SD3(tiny_sd3_unet_config(heads=heads, blocks=blocks))
    model = model_config.get_model({}, prefix="", device=cpu)
    model.diffusion_model.load_state_dict(tiny_sd3_state_dict(seed, heads=heads, blocks=blocks))
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def conformity_inputs() -> dict[str, torch.Tensor]:
    """Noise and conditionings of the stored reference runs (`tests/data/reference_sets.npz`).

    `noise` (1, 16, 32, 32) is also the first latent, since sigma starts at 1 and the latent image is empty;
    each context is (1, 7, 64), each pooled vector (1, 64).
    """
    shapes = {
        "noise": (1, LATENT_CHANNELS, 32, 32),
        "cond_context": (1, 7, CONTEXT_DIM),
        "cond_pooled": (1, POOLED_DIM),
        "uncond_context": (1, 7, CONTEXT_DIM),
        "uncond_pooled": (1, POOLED_DIM),
    }
    generator = torch.Generator("cpu").manual_seed(32)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference_runs() -> dict[str, ReferenceRun]:
    """The stored runs by name: `dense`, `half`, `quarter`, `half_both_ends`, `half_both_ends_rounded`."""
    with np.load(REFERENCE_SETS) as stored:
        return {str(name): _read_run(stored, str(name)) for name in stored["runs"]}


def fingerprint(tensors: dict[str, torch.Tensor]) -> float:
    """Sum of absolute values in float64, which detects a changed random generator."""
    return sum(tensors[key].double().abs().sum().item() for key in sorted(tensors))


def reference_fingerprints() -> dict[str, float]:
    """Stored fingerprints of `weights` and of `conformity_inputs` (`inputs`)."""
    with np.load(REFERENCE_SETS) as stored:
        return {name: float(stored[f"fingerprint/{name}"]) for name in ("weights", "inputs")}


def _read_run(stored: Any, name: str) -> ReferenceRun:
    sigmas = torch.from_numpy(stored["sigmas"])
    return ReferenceRun(
        sample_ratio=float(stored[f"{name}/sample_ratio"]),
        high_ratio=float(stored[f"{name}/high_ratio"]),
        starvation_scale=float(stored["starvation_scale"]),
        start_step=int(stored["start_step"]),
        end_step=len(sigmas) - 1,
        error_reset_steps=tuple(int(step) for step in stored["error_reset_steps"]),
        guidance=float(stored["guidance"]),
        sigmas=sigmas,
        active=torch.from_numpy(np.unpackbits(stored[f"{name}/active"], axis=1)).bool(),
        final_latent=torch.from_numpy(stored[f"{name}/final_latent"])[None],
    )


def _parameter_shapes(heads: int, blocks: int) -> dict[str, Shape]:
    """Name and shape of every drawn parameter; the last block's context half has no output (`pre_only`)."""
    width = HEAD_DIM * heads
    shapes: dict[str, Shape] = {
        "x_embedder.proj.weight": (width, LATENT_CHANNELS, PATCH_SIZE, PATCH_SIZE),
        "x_embedder.proj.bias": (width,),
    }
    _add_linear(shapes, "context_embedder", CONTEXT_DIM, width)
    for name, fan_in in (("t_embedder", TIMESTEP_FREQUENCIES), ("y_embedder", POOLED_DIM)):
        _add_linear(shapes, f"{name}.mlp.0", fan_in, width)
        _add_linear(shapes, f"{name}.mlp.2", width, width)
    for index in range(blocks):
        _add_half_block(shapes, f"joint_blocks.{index}.x_block", width, pre_only=False)
        _add_half_block(shapes, f"joint_blocks.{index}.context_block", width, pre_only=index == blocks - 1)
    _add_linear(shapes, "final_layer.adaLN_modulation.1", width, 2 * width)
    _add_linear(shapes, "final_layer.linear", width, PATCH_SIZE**2 * LATENT_CHANNELS)
    return shapes


def _add_half_block(shapes: dict[str, Shape], prefix: str, width: int, *, pre_only: bool) -> None:
    _add_linear(shapes, f"{prefix}.adaLN_modulation.1", width, (2 if pre_only else 6) * width)
    _add_linear(shapes, f"{prefix}.attn.qkv", width, 3 * width)
    if not pre_only:
        _add_linear(shapes, f"{prefix}.attn.proj", width, width)
        _add_linear(shapes, f"{prefix}.mlp.fc1", width, 4 * width)
        _add_linear(shapes, f"{prefix}.mlp.fc2", 4 * width, width)


def _add_linear(shapes: dict[str, Shape], prefix: str, fan_in: int, fan_out: int) -> None:
    shapes[f"{prefix}.weight"] = (fan_out, fan_in)
    shapes[f"{prefix}.bias"] = (fan_out,)


def _draw(key: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Uniform values of a standard deviation that keeps every layer's output of order one."""
    unit = (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(3)
    if key.endswith(".bias"):
        return unit * 0.2
    weight = unit / math.sqrt(math.prod(shape[1:]))
    if key.endswith("attn.qkv.weight"):
        return weight * 1.5  # attention that prefers some tokens over others
    if key == "y_embedder.mlp.2.weight":
        return weight * 0.4  # the prompt bends the velocity instead of replacing it
    if key == "final_layer.adaLN_modulation.1.weight":
        return weight * 0.5
    if key == "final_layer.linear.weight":
        # A few hidden channels dominate the output, so its size differs clearly from token to token.
        return weight * 3.0 * (torch.linspace(1.0, 0.0, shape[1], dtype=torch.float64) ** 8).float()
    return weight


def _position_table(width: int) -> torch.Tensor:
    """(1, 32 * 32, width) sine-cosine table in row-major token order, computed in float64."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(POS_EMBED_MAX_SIZE, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (32, width / 2)
    columns = waves.repeat(POS_EMBED_MAX_SIZE, 1)
    rows = waves.repeat_interleave(POS_EMBED_MAX_SIZE, dim=0)
    return torch.cat([columns, rows], dim=1).float()[None]
