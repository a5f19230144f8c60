"""Networks with the layer sizes of the real models, and random weights."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import Tensor, nn

from ...lumina_next.model import LuminaNextConfig, guide_first_channels
from .true_sizes import COSMOS_2B, FLUX1, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B, QWEN_IMAGE
from .weights import draw_weights

PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16
"""Pixels that an image token covers along each side, in every family."""

TINY_REFERENCE = 128
"""Side length of the reference images of tiny networks, in pixels."""

LATENT_CHANNELS = 16
FLUX2_CHANNELS = 128
LUMINA_NEXT = "LuminaNext"
FLUX, FLUX2 = "Flux", "Flux2"
QWEN, ANIMA = "QwenImage", "Anima"
_DEPTH = {"SD3": "num_blocks", LUMINA_NEXT: "num_layers", QWEN: "num_layers", ANIMA: "num_blocks"}
"""The key of `unet_config` that holds the number of main blocks, by family. Families that are not listed use
the key "n_layers"."""


@dataclass(frozen=True)
class Shape:
    """A family's network, and the shape of the conditioning from its text encoders.

    Attributes:
        name: name of the network in tables and options.
        model_class: name of a class in comfy.supported_models, or LUMINA_NEXT for the pack's own class.
        unet_config: configuration from which that class builds the network, without the dtype.
        dtype: precision in which ComfyUI runs the network.
        text_rows: number of text rows (tokens) of the positive and of the negative prompt. If the two numbers
            differ, ComfyUI evaluates the prompts in two separate network calls.
        text_width: number of features in a text row.
        pooled_width: number of features in the pooled text vector; 0 if the family has no such vector.
        multiple: the network pads its text rows and its image rows to a multiple of this number.
        channels: number of channels of the latent.
        cfg: guidance scale. At a scale of 1, ComfyUI evaluates only the positive prompt; networks that were
            distilled from guided ones are run at this scale.
        has_mask: whether the text encoder outputs a mask although no text row is masked. ComfyUI's encoders
            of most families then leave it out.
        latent_pixels: number of pixels that a latent pixel covers along each side.
        has_frames: whether latents have a time axis, (b, c, 1, H, W).
        references: side lengths, in pixels, of the square reference images of both prompts.
    """

    name: str
    model_class: str
    unet_config: Mapping[str, Any]
    dtype: torch.dtype
    text_rows: tuple[int, int]
    text_width: int
    pooled_width: int = 0
    multiple: int = 1
    channels: int = LATENT_CHANNELS
    cfg: float = 5.0
    has_mask: bool = False
    latent_pixels: int = PIXELS_PER_LATENT
    has_frames: bool = False
    references: tuple[int, ...] = ()

    @property
    def rows_in_network(self) -> tuple[int, ...]:
        """Number of text rows that the blocks process, padding included, for each prompt that is
        evaluated.
        """
        evaluated = self.text_rows[:1] if self.cfg == 1 else self.text_rows
        return tuple(-(-rows // self.multiple) * self.multiple for rows in evaluated)

    @property
    def reference_rows(self) -> int:
        """Number of rows of the reference images in the network, for each prompt that is evaluated."""
        return sum((side // PIXELS_PER_TOKEN) ** 2 for side in self.references)

    def conditioning(self, which: int) -> list:
        """A random CONDITIONING for the positive (`which` = 0) or the negative prompt (1), in the format that
        a text encoder node returns, with the reference images that the node ReferenceLatent adds.
        """
        generator = torch.Generator().manual_seed(which + 1)
        rows = self.text_rows[which]
        extras: dict[str, Any] = {}
        if self.has_mask:
            extras["attention_mask"] = torch.ones(1, rows, dtype=torch.long)
        if self.pooled_width:
            extras["pooled_output"] = torch.randn(1, self.pooled_width, generator=generator)
        text = torch.randn(1, rows, self.text_width, generator=generator)
        if self.references:
            sizes = [self._latent_size(1, side, side) for side in self.references]
            extras["reference_latents"] = [torch.randn(size, generator=generator) for size in sizes]
        return [[text, extras]]

    def latent(self, height: int, width: int, batch: int) -> dict[str, Tensor]:
        """An empty LATENT for images of this size in pixels."""
        return {"samples": torch.zeros(self._latent_size(batch, height, width))}

    def _latent_size(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        frames = (1,) if self.has_frames else ()
        return (batch, self.channels, *frames, height // self.latent_pixels, width // self.latent_pixels)

    def network(self, device: torch.device, seed: int = 0) -> nn.Module:
        """The bare network, with random weights generated on the device. Do not call it in a process with
        dynamic VRAM, where a new network has no weights.
        """
        network = self._model(device).diffusion_model
        draw_weights(network, seed)
        return network

    def build(self, device: torch.device, seed: int = 0) -> comfy.model_patcher.ModelPatcher:
        """A MODEL built in this process, for checks and for networks that ComfyUI's loader does not detect.

        The model is never moved to the CPU, because moving 16 GB would take longer than the runs: its offload
        device is the device it runs on.
        """
        model = self._model(device)
        draw_weights(model.diffusion_model, seed)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        if self.model_class == LUMINA_NEXT:
            guide_first_channels(patcher)  # as the pack's loader node does by default
        return patcher

    def _model(self, device: torch.device) -> Any:
        is_own = self.model_class == LUMINA_NEXT
        of_class = LuminaNextConfig if is_own else getattr(comfy.supported_models, self.model_class)
        return of_class({**self.unet_config, "dtype": self.dtype}).get_model({}, prefix="", device=device)

    def shallow(self, blocks: int) -> Shape:
        """This network with only this number of main blocks; their width does not change, and Flux keeps the
        share of its double-stream blocks.
        """
        if self.model_class in (FLUX, FLUX2):
            depth, single = (self.unet_config[name] for name in ("depth", "depth_single_blocks"))
            depth = max(round(blocks * depth / (depth + single)), 1)
            depths = {"depth": depth, "depth_single_blocks": blocks - depth}
            return replace(self, unet_config={**self.unet_config, **depths})
        config = {**self.unet_config, _DEPTH.get(self.model_class, "n_layers"): blocks}
        if config.get("x_block_self_attn_layers"):
            config["x_block_self_attn_layers"] = [0, 1]
        return replace(self, unet_config=config)

    def as_detected(self) -> Shape:
        """The shape with the number of blocks that ComfyUI's loader infers from an SD3 network's width."""
        if self.model_class != "SD3":
            return self
        config = {name: value for name, value in self.unet_config.items() if name != "num_blocks"}
        return replace(self, unet_config=config)

    def tiny(self) -> Shape:
        """A network of the same family that is small enough to run in milliseconds on a CPU."""
        config = {**self.unet_config, **_TINY[self.model_class]}
        if config.get("x_block_self_attn_layers"):
            config["x_block_self_attn_layers"] = [0]
        return replace(
            self, unet_config=config, dtype=torch.float32, text_width=64,
            pooled_width=64 if self.pooled_width else 0,
            text_rows=tuple(max(rows // 16, 3) for rows in self.text_rows),
            references=(TINY_REFERENCE,) * len(self.references),
        )  # fmt: skip


def free() -> None:
    """Unload ComfyUI's models and free their memory on the device."""
    comfy.model_management.unload_all_models()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _mmdit(depth: int, positions: int, **changes: Any) -> dict[str, Any]:
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    return {
        "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "patch_size": 2, "input_size": None,
        "depth": depth, "adm_in_channels": 2048, "context_embedder_config": context,
        "num_patches": positions**2, "pos_embed_max_size": positions, "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": [], **changes,
    }  # fmt: skip


def _klein(name: str, unet_config: Mapping[str, Any], references: tuple[int, ...] = ()) -> Shape:
    return Shape(
        name, FLUX2, unet_config, torch.bfloat16, (512, 512), unet_config["context_in_dim"], multiple=512,
        channels=FLUX2_CHANNELS, latent_pixels=16, references=references,
    )  # fmt: skip


_NEXTDIT = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": LATENT_CHANNELS, "qk_norm": True,
}  # fmt: skip
_LUMINA2 = {
    **_NEXTDIT, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8,
    "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
_Z_IMAGE = {
    **_NEXTDIT, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30,
    "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
_TINY_MMDIT = {
    "depth": 2, "num_blocks": 3, "adm_in_channels": 64, "num_patches": 32**2, "pos_embed_max_size": 32,
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128},
    },
}  # fmt: skip
_TINY_BLOCKS = {"n_layers": 3, "cap_feat_dim": 64, "axes_dims": [8, 12, 12], "multiple_of": 32}
_LUMINA_NEXT = {
    "in_channels": 4, "hidden_size": 2304, "num_layers": 24, "num_attention_heads": 32, "num_kv_heads": 8,
    "ffn_size": 6144, "cross_attention_dim": 2048, "out_channels": 8, "sample_size": 128,
}  # fmt: skip
_FLUX_DEV = {
    "image_model": "flux", "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "patch_size": 2,
    **FLUX1, "theta": 10000, "vec_in_dim": 768, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_FLUX2 = {
    "image_model": "flux2", "in_channels": FLUX2_CHANNELS, "out_channels": FLUX2_CHANNELS, "patch_size": 1,
    "theta": 2000, "vec_in_dim": None, "qkv_bias": False, "guidance_embed": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
    "ref_index_scale": 10.0,
}  # fmt: skip
_KLEIN_4B = {**_FLUX2, **FLUX2_KLEIN_4B, "context_in_dim": 7680}
_KLEIN_9B = {**_FLUX2, **FLUX2_KLEIN_9B, "context_in_dim": 12288}
_QWEN_IMAGE = {"image_model": "qwen_image", "in_channels": 4 * LATENT_CHANNELS, **QWEN_IMAGE}
_QWEN_IMAGE_EDIT = {**_QWEN_IMAGE, "default_ref_method": "index_timestep_zero"}  # the version of 2511
_ANIMA = {
    "image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128,
    "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "patch_spatial": 2, "patch_temporal": 1,
    **COSMOS_2B, "concat_padding_mask": True, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
    "adaln_lora_dim": 256, "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
_TINY = {
    "SD3": _TINY_MMDIT,
    LUMINA_NEXT: {
        "hidden_size": 128, "num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2, "ffn_size": 512,
        "cross_attention_dim": 64, "sample_size": 16,
    },
    "Lumina2": {**_TINY_BLOCKS, "dim": 128, "n_heads": 4, "n_kv_heads": 2},
    "ZImage": {**_TINY_BLOCKS, "dim": 256, "n_heads": 8, "n_kv_heads": 8},
    # 128 features per attention head, because ComfyUI's loader assumes this width for Flux.
    FLUX: {
        "hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 2, "context_in_dim": 64,
        "vec_in_dim": 64,
    },
    FLUX2: {
        "hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 2, "context_in_dim": 64,
    },
    QWEN: {
        "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    },
    ANIMA: {
        "model_channels": 64, "num_blocks": 3, "num_heads": 2, "adaln_lora_dim": 16,
        "crossattn_emb_channels": 64,
    },
}  # fmt: skip

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("sd3_medium", "SD3", _mmdit(24, 192), torch.float16, (154, 154), 4096, 2048),
        Shape("sd35_large", "SD3", _mmdit(38, 192, qk_norm="rms"), torch.float16, (154, 154), 4096, 2048),
        Shape(
            "sd35_medium", "SD3",
            _mmdit(24, 384, qk_norm="rms", x_block_self_attn_layers=list(range(13))),
            torch.float16, (154, 154), 4096, 2048,
        ),
        # ComfyUI runs the following networks in bfloat16. Lumina-Next pads both prompts to the longer one's
        # length.
        Shape("lumina2", "Lumina2", _LUMINA2, torch.bfloat16, (96, 40), 2304, has_mask=True),
        Shape("z_image", "ZImage", _Z_IMAGE, torch.bfloat16, (96, 20), 2560, multiple=32, has_mask=True),
        Shape(
            "lumina_next", LUMINA_NEXT, _LUMINA_NEXT, torch.bfloat16, (96, 96), 2048, channels=4,
            has_mask=True,
        ),
        Shape("flux_dev", FLUX, _FLUX_DEV, torch.bfloat16, (512, 512), 4096, 768, cfg=1.0),
        Shape(
            "flux_kontext", FLUX, _FLUX_DEV, torch.bfloat16, (512, 512), 4096, 768, cfg=1.0,
            references=(1024,),
        ),
        # Klein is the base model, which is not distilled. ComfyUI pads the text of Flux.2 to 512 rows.
        _klein("flux2_klein_4b", _KLEIN_4B),
        _klein("flux2_klein_4b_edit", _KLEIN_4B, references=(1024,)),
        _klein("flux2_klein_9b", _KLEIN_9B),
        _klein("flux2_klein_9b_edit", _KLEIN_9B, references=(1024,)),
        Shape(
            "qwen_image", QWEN, _QWEN_IMAGE, torch.bfloat16, (100, 20), 3584, has_frames=True,
        ),
        # Both prompts of Qwen-Image-Edit contain some 200 rows of the reference image.
        Shape(
            "qwen_image_edit", QWEN, _QWEN_IMAGE_EDIT, torch.bfloat16, (300, 220), 3584, has_frames=True,
            references=(1024,),
        ),
        # ComfyUI pads the text of Anima to 512 rows.
        Shape("anima", ANIMA, _ANIMA, torch.bfloat16, (512, 512), 1024, has_frames=True),
    )
}  # fmt: skip
