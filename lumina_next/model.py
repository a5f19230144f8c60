"""Lumina-Next as a model of ComfyUI: settings, conditioning, timestep and patcher."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_management as model_management
import comfy.supported_models_base
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .network import LuminaNextDiT

GUIDED_CHANNELS = 3


class LuminaNextConfig(comfy.supported_models_base.BASE):
    """The model config class that ComfyUI needs for a model family, here for Lumina-Next."""

    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"multiplier": 1.0, "shift": 1.0}
    latent_format = comfy.latent_formats.SDXL
    memory_usage_factor = 1.4  # ComfyUI's value for Lumina-Image-2.0, whose network has the same width
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> LuminaNext:
        return LuminaNext(self, ModelType.FLOW, device=device, unet_model=LuminaNextDiT)


class LuminaNext(BaseModel):
    """The model class through which ComfyUI calls the network."""

    def process_timestep(self, timestep: Tensor, **kwargs) -> Tensor:
        """Convert a timestep to sigma, which the network expects.

        The two are equal, unless a node that changes the shift (such as ModelSamplingSD3) was used: with it,
        timesteps are 1000 times sigma, as in SD3.
        """
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def extra_conds(self, **kwargs) -> dict[str, Any]:
        """Caption and its mask, as `CaptionCond`: captions of different lengths can then share a batch."""
        conds = super().extra_conds(**kwargs)
        caption = kwargs.get("cross_attn")
        if caption is not None:
            mask = kwargs.get("attention_mask")
            mask = torch.ones(caption.shape[:2], dtype=torch.long) if mask is None else mask
            conds["c_crossattn"] = CaptionCond(caption)
            conds["attention_mask"] = CaptionCond(mask.to(caption.device))
        return conds


class CaptionCond(comfy.conds.CONDRegular):
    """Caption embeddings or their mask: a tensor (b, l, ...), where l is the number of caption tokens.

    So that it can share a batch with a longer caption, a tensor is padded with zeros. The mask then excludes
    the padding.
    """

    def can_concat(self, other: CaptionCond) -> bool:
        return self.cond.shape[2:] == other.cond.shape[2:] and self.cond.device == other.cond.device

    def concat(self, others: list[CaptionCond]) -> Tensor:
        rows = [self.cond, *(other.cond for other in others)]
        longest = max(t.shape[1] for t in rows)
        return torch.cat([F.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1])) for t in rows])


def build_patcher(
    network_config: dict[str, Any], state: dict[str, Tensor], sampling_settings: dict[str, float]
) -> ModelPatcher:
    """Build MODEL from weights in diffusers' layout, in the dtype that ComfyUI selects for the device."""
    config = LuminaNextConfig(network_config)
    config.sampling_settings = {**config.sampling_settings, **sampling_settings}
    load_device = model_management.get_torch_device()
    offload_device = model_management.unet_offload_device()
    supported = list(config.supported_inference_dtypes)
    dtype = model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, load_device, supported))
    model = config.get_model(state).to(offload_device)
    model.load_model_weights(dict(state), "")
    return ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def guide_first_channels(model: ModelPatcher) -> None:
    """Apply classifier-free guidance to the first three latent channels only, as the reference code does.

    The fourth channel of the result is that of the prediction for the positive prompt.
    """
    model.set_model_sampler_post_cfg_function(_keep_last_channel)


def _keep_last_channel(args: dict[str, Any]) -> Tensor:
    guided, cond = args["denoised"][:, :GUIDED_CHANNELS], args["cond_denoised"][:, GUIDED_CHANNELS:]
    return torch.cat((guided, cond), dim=1)
