"""A job for the process that runs the reference code. This module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..speed.cases import Variant


@dataclass(frozen=True)
class Job:
    """One case for the reference code.

    Attributes:
        checkout: folder with microsoft/RAS.
        family: "sd3" or "lumina_next".
        network: arguments of diffusers' transformer class.
        variants: the variants to run, dense first.
        dtype: name of the network's precision in torch.
        device: "cuda" or "cpu".
        pixels: image size along each side.
        batch, steps: batch size and sampling steps of a run.
        text: three numbers: text rows of a prompt, width of a text row, and width of the pooled text vector
            (0 if the network has none).
        repeats: number of timed runs of each variant.
        seconds: time limit of the job; infinite if there is none.
    """

    checkout: str
    family: str
    network: Mapping[str, Any]
    variants: tuple[Variant, ...]
    dtype: str
    device: str
    pixels: int
    batch: int
    steps: int
    text: tuple[int, int, int]
    repeats: int
    seconds: float

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        found = json.loads(text)
        found["variants"] = tuple(Variant(**each) for each in found["variants"])
        return cls(**{**found, "text": tuple(found["text"])})


def diffusers_config(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with which diffusers' transformer class builds the network that `config` defines.

    `config` has the arguments of ComfyUI's network class for SD3, and of this pack's class for Lumina-Next.
    """
    if family == "lumina_next":
        return {
            "sample_size": config["sample_size"], "patch_size": 2, "in_channels": config["in_channels"],
            "hidden_size": config["hidden_size"], "num_layers": config["num_layers"],
            "num_attention_heads": config["num_attention_heads"], "num_kv_heads": config["num_kv_heads"],
            "cross_attention_dim": config["cross_attention_dim"],
        }  # fmt: skip
    depth = config["depth"]
    return {
        "sample_size": 128, "patch_size": config["patch_size"], "in_channels": config["in_channels"],
        "num_layers": config.get("num_blocks", depth), "attention_head_dim": 64,
        "num_attention_heads": depth, "caption_projection_dim": 64 * depth,
        "joint_attention_dim": config["context_embedder_config"]["params"]["in_features"],
        "pooled_projection_dim": config["adm_in_channels"], "out_channels": config["out_channels"],
        "pos_embed_max_size": config["pos_embed_max_size"],
    }  # fmt: skip


def reference_arguments(variant: Variant, job: Job, start_step: int, resets: tuple[int, ...]) -> list[str]:
    """The command-line arguments with which the programs in microsoft/RAS would run this variant."""
    words = {
        "num_inference_steps": job.steps, "sample_ratio": variant.ratio, "height": job.pixels,
        "width": job.pixels, "error_reset_steps": ",".join(map(str, resets)), "metric": "std",
        "high_ratio": 1.0, "starvation_scale": 0.1, "scheduler_start_step": start_step,
        "scheduler_end_step": job.steps, "patch_size": 2,
    }  # fmt: skip
    flags = {"flash": ["--replace_with_flash_attn"], "fused": ["--enable_index_fusion"]}
    return [part for name, value in words.items() for part in (f"--{name}", str(value))] + flags.get(
        variant.option, []
    )
