"""Tiny models of the families for which each proof runs once (tests/models/test_other_families.py)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.layers
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.qwen_image.model
import comfy.supported_models
import torch

from support.families import Family
from support.tiny_sd3 import CONTEXT_DIM, LATENT_CHANNELS, POOLED_DIM

FLUX2_CHANNELS, HUNYUAN_CHANNELS, SDXL_CHANNELS = 128, 64, 4
IS_FLIPPED = "flipped_img_txt" in inspect.signature(comfy.ldm.flux.layers.DoubleStreamBlock).parameters
"""Whether HunyuanImage puts the text rows after the image rows, as in older versions of ComfyUI. Such a
network is refused, because it cuts off the text by the number of rows before the first block."""

REFERENCES = ((6, 4), (3, 5))


def _config(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"dtype": torch.float32, **settings}


def _without_sizes(name: str) -> type | None:
    """ComfyUI's class of this name for a model, without the sizes that it sets in each configuration; None if
    this version of ComfyUI does not have it.
    """
    found = getattr(comfy.supported_models, name, None)
    return found and type(name, (found,), {"unet_extra_config": {}})


def _flux_like(params: type, image_model: str, **settings: Any) -> Callable[[], dict[str, Any]]:
    """The configuration of a network whose parameters are those of the dataclass `params`; in an older
    ComfyUI, it has fewer of them.
    """
    common = {
        "image_model": image_model, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS,
        "context_in_dim": CONTEXT_DIM, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(params)} | {"image_model"}
    return _config(**{name: each for name, each in {**common, **settings}.items() if name in known})


def _flux2() -> Callable[[], dict[str, Any]]:
    return _flux_like(
        comfy.ldm.flux.model.FluxParams, "flux2", in_channels=FLUX2_CHANNELS, out_channels=FLUX2_CHANNELS,
        vec_in_dim=None, mlp_ratio=3.0, hidden_size=32, num_heads=1, depth=1, depth_single_blocks=1,
        axes_dim=[8] * 4, theta=2000, patch_size=1, qkv_bias=False, guidance_embed=False, txt_ids_dims=[3],
        global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index",
        ref_index_scale=10.0,
    )  # fmt: skip


def _qwen(**changes: Any) -> Callable[[], dict[str, Any]]:
    common = {
        "image_model": "qwen_image", "in_channels": 4 * LATENT_CHANNELS, "out_channels": LATENT_CHANNELS,
        "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
        "joint_attention_dim": CONTEXT_DIM, "axes_dims_rope": (8, 12, 12),
    }  # fmt: skip
    known = inspect.signature(comfy.ldm.qwen_image.model.QwenImageTransformer2DModel).parameters
    return _config(**{name: each for name, each in {**common, **changes}.items() if name in known})


def _anima(image_model: str) -> Callable[[], dict[str, Any]]:
    return _config(
        image_model=image_model, max_img_h=240, max_img_w=240, max_frames=128, in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS, patch_spatial=2, patch_temporal=1, model_channels=64,
        concat_padding_mask=True, crossattn_emb_channels=CONTEXT_DIM, pos_emb_cls="rope3d",
        pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True,
        adaln_lora_dim=16, num_blocks=2, num_heads=2, extra_per_block_abs_pos_emb=False,
        rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0, rope_t_extrapolation_ratio=1.0,
        extra_h_extrapolation_ratio=1.0, extra_w_extrapolation_ratio=1.0, extra_t_extrapolation_ratio=1.0,
        rope_enable_fps_modulation=False,
    )  # fmt: skip


def _timestep_zero(generator: torch.Generator, rows: int) -> dict[str, Any]:
    return {"reference_latents_method": "index_timestep_zero"}


def _glyphs(generator: torch.Generator, rows: int) -> dict[str, Any]:
    return {"conditioning_byt5small": torch.randn(1, 4, 1472, generator=generator)}


def _llama(generator: torch.Generator, rows: int) -> dict[str, Any]:
    return {"conditioning_llama3": torch.randn(1, 2, rows, CONTEXT_DIM, generator=generator)}


OTHERS = {
    family.name: family
    for family in (
        Family(
            "chroma", "Chroma",
            _flux_like(
                comfy.ldm.chroma.model.ChromaParams, "chroma", in_channels=4 * LATENT_CHANNELS, out_channels=4
                * LATENT_CHANNELS, vec_in_dim=None, in_dim=64, out_dim=64, hidden_dim=32, n_layers=1,
                txt_ids_dims=[],
            ),
            block_attentions=(1,) * 4, kv_width=64, text_joins=2,
        ),
        Family(
            "flux2", "Flux2", _flux2(), block_attentions=(1, 1), kv_width=32, text_joins=1, patch=1,
            channels=FLUX2_CHANNELS, text=512, references=REFERENCES, extras=_timestep_zero,
        ),
        Family(
            "qwen_image", "QwenImage", _qwen(), block_attentions=(1, 1), kv_width=64, has_frames=True,
            masked=2,
        ),
        Family(
            "qwen_image_edit", "QwenImage", _qwen(default_ref_method="index_timestep_zero"),
            block_attentions=(1, 1), kv_width=64, has_frames=True, masked=2, references=((12, 8), (6, 9)),
        ),
        Family(
            "mage_flow", "MageFlow",
            _qwen(image_model="mage_flow", in_channels=FLUX2_CHANNELS, out_channels=FLUX2_CHANNELS),
            block_attentions=(1, 1), kv_width=64, patch=1, channels=FLUX2_CHANNELS, masked=2,
            references=((6, 4),),
        ),
        Family(
            "ideogram4", _without_sizes("Ideogram4"),
            _config(
                image_model="ideogram4", in_channels=FLUX2_CHANNELS, num_layers=2, num_attention_heads=2,
                attention_head_dim=32, intermediate_size=96, adaln_dim=16, llm_features_dim=CONTEXT_DIM,
                mrope_section=(6, 5, 5),
            ),
            block_attentions=(1, 1), kv_width=64, text_joins=0, patch=1, channels=FLUX2_CHANNELS, masked=2,
        ),
        Family(
            "anima", "Anima", _anima("anima"), block_attentions=(1, 1), kv_width=64, has_frames=True,
            text_in_cache=False,
        ),
        Family(
            "cosmos_predict2", "CosmosT2IPredict2", _anima("cosmos_predict2"), block_attentions=(1, 1),
            kv_width=64, has_frames=True, text_in_cache=False, whole_patches=True,
        ),
        Family(
            "krea2", "Krea2",
            _config(
                image_model="krea2", features=128, tdim=32, txtdim=32, heads=4, kvheads=2, multiplier=2,
                layers=2, patch=2, channels=LATENT_CHANNELS, txtlayers=3, txtheads=2, txtkvheads=2,
                default_ref_method="index_timestep_zero",
            ),
            block_attentions=(1, 1), kv_width=64, text_joins=0, has_frames=True, context_dim=3 * 32,
            references=((12, 8),),
        ),
        Family(
            "hunyuan_image", None if IS_FLIPPED else "HunyuanImage21",
            _flux_like(
                comfy.ldm.hunyuan_video.model.HunyuanVideoParams, "hunyuan_video",
                in_channels=HUNYUAN_CHANNELS, out_channels=HUNYUAN_CHANNELS, theta=256, axes_dim=[16, 16],
                patch_size=[1, 1], vec_in_dim=None, guidance_embed=True, byt5=True, meanflow=False,
                use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
            ),
            block_attentions=(1,) * 4, kv_width=64, text_joins=2, patch=1, channels=HUNYUAN_CHANNELS,
            text=7 + 4, unplanned=4, extras=_glyphs,
        ),
        Family(
            "aura_flow", "AuraFlow",
            _config(
                in_channels=SDXL_CHANNELS, out_channels=SDXL_CHANNELS, dim=64, n_layers=4, n_double_layers=2,
                n_heads=2, global_conddim=32, cond_seq_dim=CONTEXT_DIM, max_seq=8 * 8,
            ),
            block_attentions=(1,) * 4, kv_width=64, text_joins=2, channels=SDXL_CHANNELS, text=7 + 8,
            has_tables=False,
        ),
        Family(
            "hidream", "HiDream",
            _config(
                image_model="hidream", patch_size=2, in_channels=LATENT_CHANNELS,
                out_channels=LATENT_CHANNELS, num_layers=2, num_single_layers=2, attention_head_dim=32,
                num_attention_heads=2, caption_channels=[CONTEXT_DIM, CONTEXT_DIM], text_emb_dim=POOLED_DIM,
                num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(16, 8, 8),
                max_resolution=(32, 32), llama_layers=[0, 1, 1, 1],
            ),
            block_attentions=(1,) * 4, kv_width=64, text_joins=2, text=3 * 7, extras=_llama,
            text_follows=True,
        ),
        Family(
            "kandinsky5", "Kandinsky5Image",
            _config(
                image_model="kandinsky5", in_visual_dim=LATENT_CHANNELS, out_visual_dim=LATENT_CHANNELS,
                in_text_dim=CONTEXT_DIM, in_text_dim2=POOLED_DIM, time_dim=32, model_dim=64, ff_dim=96,
                visual_embed_dim=4 * LATENT_CHANNELS, num_text_blocks=1, num_visual_blocks=2,
                axes_dims=(8, 12, 12),
            ),
            block_attentions=(1, 1), kv_width=64, text_in_cache=False, whole_patches=True,
        ),
    )
}  # fmt: skip
# An older ComfyUI knows fewer of them.
OTHERS = {name: family for name, family in OTHERS.items() if family.config_class is not None}
