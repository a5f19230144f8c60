"""A tiny model for every supported model family, built from ComfyUI's own classes.

Weights are random: each layer preserves the scale of its input, and modulation is not zero, so that every
path of the network affects its output.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.ldm.flux.model
import comfy.model_patcher
import comfy.supported_models
import numpy as np
import torch
from ras_pack.lumina_next.model import LuminaNextConfig
from ras_pack.ras_core.method.grid import TokenGrid
from torch import Tensor

from support import tiny_lumina_next
from support.tiny_sd3 import CONTEXT_DIM, LATENT_CHANNELS, POOLED_DIM, tiny_sd3_unet_config


@dataclass(frozen=True)
class Family:
    """A tiny model and its conditioning.

    Attributes:
        name: name in test ids.
        model_class: class name in comfy.supported_models, or the pack's own class.
        unet_config: configuration from which that class builds the network.
        pads: the multiple to which the family pads its text and image rows; 1 for none.
        refiners: blocks for the image rows alone, before the main ones.
        block_attentions: number of attentions with their own K/V cache in each block.
        kv_width: numbers in one cached key (repeated heads counted once).
        channels: channels of its latent.
        text_in_cache: whether the first attention of a block has text rows.
        text_joins: first block whose tensor with the image rows has the text rows too; None if there is none.
        references: sizes of reference images, whose rows follow those of the image.
        patch: latent pixels that a token covers along each side.
        has_frames: whether its latents have a time axis, (b, c, 1, H, W).
        text: rows that a text of seven rows takes in the main blocks, with padding and rows that the network
            adds to the text.
        unplanned: how many of these rows the adapter cannot know before the first call, such as those of a
            second text encoder.
        context_dim: width of a row of text.
        extras: makes further entries of a conditioning with a text of this number of rows.
        masked: number of rows at the end of the text that are masked.
        text_follows: whether the text rows follow the image rows.
        whole_patches: whether ComfyUI can sample only latents whose size is a multiple of the patch size.
        has_tables: whether the blocks receive position tables.
    """

    name: str
    model_class: str | type | None
    unet_config: Callable[[], dict[str, Any]]
    pads: int = 1
    refiners: int = 0
    block_attentions: tuple[int, ...] = (1, 1, 1)
    kv_width: int = 128
    channels: int = LATENT_CHANNELS
    text_in_cache: bool = True
    text_joins: int | None = None
    references: tuple[tuple[int, int], ...] = ()
    patch: int = 2
    has_frames: bool = False
    text: int = 7
    unplanned: int = 0
    context_dim: int = CONTEXT_DIM
    extras: Callable[[torch.Generator, int], dict[str, Any]] = lambda generator, rows: {}
    masked: int = 0
    text_follows: bool = False
    whole_patches: bool = False
    has_tables: bool = True

    @property
    def reference_rows(self) -> int:
        return sum(map(self.tokens, self.references))

    def tokens(self, size: tuple[int, int]) -> int:
        """Number of image tokens of a latent of this height and width."""
        return self.grid(size).n

    def grid(self, size: tuple[int, int]) -> TokenGrid:
        """The token grid of a latent of this height and width."""
        return TokenGrid.of(self._latent_size(size), (self.patch, self.patch))

    def _latent_size(self, size: tuple[int, int]) -> tuple[int, ...]:
        return (1, *size) if self.has_frames else size

    @property
    def config_class(self) -> type | None:
        """ComfyUI's (or the pack's) class for the model; None if this version of ComfyUI does not have it."""
        if not isinstance(self.model_class, str):
            return self.model_class
        return getattr(comfy.supported_models, self.model_class, None)

    def build(self, seed: int = 0, device: str | torch.device = "cpu", **changes: Any):
        """A ModelPatcher in float32, loaded on this device; `changes` are arguments of its network."""
        cpu = torch.device("cpu")
        config = self.config_class({**self.unet_config(), **changes})
        model = config.get_model({}, prefix="", device=cpu)
        draw_weights(model.diffusion_model, seed)
        return comfy.model_patcher.ModelPatcher(model, load_device=torch.device(device), offload_device=cpu)

    def conditioning(self, seed: int, rows: int = 7) -> list:
        """A random CONDITIONING with the structure that ComfyUI's text encoder nodes output."""
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, rows, self.context_dim, generator=generator)
        pooled = torch.randn(1, POOLED_DIM, generator=generator)
        mask = torch.ones(1, rows, dtype=torch.long)
        mask[:, rows - self.masked :] = 0
        extras = {"pooled_output": pooled, "attention_mask": mask, **self.extras(generator, rows)}
        if self.references:
            extras["reference_latents"] = [
                torch.randn(1, self.channels, *self._latent_size(size), generator=generator)
                for size in self.references
            ]
        return [[context, extras]]

    def inputs(self, model: comfy.model_patcher.ModelPatcher, x: Tensor, rows: int = 7) -> dict[str, Any]:
        """The arguments by name that ComfyUI passes to the network for the latents `x` and a conditioning
        with a text of `rows` rows.
        """
        context, extras = self.conditioning(1, rows)[0]
        conds = model.model.extra_conds(cross_attn=context, noise=x, device=x.device, **extras)
        return {name: each.process_cond(batch_size=len(x), area=None).cond for name, each in conds.items()}

    def noise(
        self, height: int | None = None, width: int | None = None, batch: int = 1, seed: int = 3
    ) -> Tensor:
        """Latents of this size; by default, of 8 x 8 tokens."""
        size = self._latent_size((height or 8 * self.patch, width or 8 * self.patch))
        return torch.randn(batch, self.channels, *size, generator=torch.Generator().manual_seed(seed))


def _sd3(**changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**tiny_sd3_unet_config(), **changes}


def _nextdit(**changes: Any) -> Callable[[], dict[str, Any]]:
    base = {
        "image_model": "lumina2",
        "in_channels": LATENT_CHANNELS,
        "patch_size": 2,
        "dim": 128,
        "n_layers": 3,
        "n_refiner_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "multiple_of": 32,
        "ffn_dim_multiplier": 2.0,
        "qk_norm": True,
        "cap_feat_dim": CONTEXT_DIM,
        "axes_dims": [8, 12, 12],
        "axes_lens": [64, 64, 64],
        "dtype": torch.float32,
    }
    return lambda: {**base, **changes}


def _flux(**changes: Any) -> Callable[[], dict[str, Any]]:
    base = {
        "image_model": "flux",
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "patch_size": 2,
        "hidden_size": 128,
        "num_heads": 4,
        "axes_dim": [8, 12, 12],
        "theta": 10000,
        "mlp_ratio": 2.0,
        "depth": 2,
        "depth_single_blocks": 3,
        "context_in_dim": CONTEXT_DIM,
        "vec_in_dim": POOLED_DIM,
        "qkv_bias": True,
        "guidance_embed": True,
        "dtype": torch.float32,
    }
    known = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    if "txt_ids_dims" in known:  # an older ComfyUI does not have it
        base["txt_ids_dims"] = []
    return lambda: {**base, **changes}


FAMILIES = {
    family.name: family
    for family in (
        Family("sd3", "SD3", _sd3()),
        Family("sd35_large", "SD3", _sd3(qk_norm="rms")),
        Family(
            "sd35_medium", "SD3", _sd3(qk_norm="rms", x_block_self_attn_layers=[0, 1]),
            block_attentions=(2, 2, 1),
        ),
        Family(
            "lumina2", "Lumina2", _nextdit(), refiners=2, block_attentions=(1,) * 5, kv_width=64,
            text_joins=2,
        ),
        Family(
            "z_image", "ZImage",
            # Its modulation has 256 channels, so that is the smallest width.
            _nextdit(
                dim=256, n_heads=8, n_kv_heads=8, pad_tokens_multiple=32,
                z_image_modulation=True, time_scale=1000.0,
            ),
            pads=32, refiners=2, block_attentions=(1,) * 5, kv_width=256, text_joins=2,
        ),
        Family(
            "lumina_next", LuminaNextConfig,
            lambda: {**tiny_lumina_next.NETWORK_CONFIG, "dtype": torch.float32},
            kv_width=48, channels=tiny_lumina_next.CHANNELS, text_in_cache=False,
        ),
        Family("flux", "Flux", _flux(), block_attentions=(1,) * 5, text_joins=2),
        Family(
            "flux_fill", "FluxInpaint", _flux(in_channels=6 * LATENT_CHANNELS), block_attentions=(1,) * 5,
            text_joins=2,
        ),
        Family(
            "flux_kontext", "Flux", _flux(), block_attentions=(1,) * 5, text_joins=2,
            references=((12, 8), (6, 10)),
        ),
    )
}  # fmt: skip
# An older ComfyUI knows fewer of them.
FAMILIES = {name: family for name, family in FAMILIES.items() if family.config_class is not None}

KINDS = tuple(name for name in ("sd35_medium", "lumina2", "lumina_next", "flux") if name in FAMILIES)
"""Families whose networks differ most in what RAS must handle: two attentions in a block, refiners and shared
heads, text that is not in the cache, two kinds of blocks. For tests of code that knows no family.
"""

VARIANTS = tuple(name for name in ("flux_fill", "flux_kontext") if name in FAMILIES)
"""They differ from `flux` only in the inputs of a call: for tests of the adapters and of captured calls."""


UNDRAWN = ("llm_adapter.", "pos_embedder.")
"""Beginnings of the names of tensors that keep their values: the many weights of Anima's text adapter, which
run only with ids of T5's tokens, and constants from which Cosmos Predict2 computes positions."""


@torch.no_grad()
def draw_weights(network: torch.nn.Module, seed: int) -> None:
    """Fill the network with random weights. The values of a tensor depend only on its name and the seed, so
    they are the same in a version of ComfyUI whose network lacks other tensors.
    """
    for name, tensor in (dict(network.named_parameters()) | dict(network.named_buffers())).items():
        if not name.startswith(UNDRAWN):
            tensor.copy_(torch.from_numpy(_drawn(name, tuple(tensor.shape), seed)))


@lru_cache(maxsize=4096)
def _drawn(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The random values of one weight. They are cached, because most tests build the same few models; as a
    NumPy array, because some tests count the live tensors.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    draw = torch.randn(shape, generator=generator).numpy()
    if len(shape) >= 2:
        return draw / np.float32(math.sqrt(math.prod(shape[1:])) if "pos_embed" not in name else 2.0)
    return draw * np.float32(0.1) + np.float32(0.0 if name.endswith("bias") else 1.0)
