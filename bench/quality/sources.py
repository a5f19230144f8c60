"""Load the models to measure: the bundled demo models, a user's checkpoint, or tiny random ones for tests."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...demo import loader
from ...demo.prompt import encode_prompt
from ...ras_core.errors import RASError, path_end
from ...ras_core.models import adapter_for, network_of
from .options import Options, file_digest

RANDOM = "random_"
CHECKPOINT = "checkpoint"
DEMO_CFG, CHECKPOINT_CFG = 3.5, 5.0
DEMO_FAMILIES = {
    **loader.FAMILIES,
    "flux_edit": replace(loader.FAMILIES["flux"], weights="flux_edit.safetensors"),
}
"""The demo families, and the editing model, whose weights are not in the pack: `training` makes them."""


@dataclass(frozen=True)
class Source:
    """A model with its autoencoder and text encoder.

    Attributes:
        family: name of the model in the results.
        identity: text that tells models with different weights apart; it contains a hash of the weights.
        model: the MODEL, without any patch.
        encode: function from a prompt to its context (1, r, d) and the other values of its CONDITIONING.
        decode: function from latents (n, c, H/8, W/8) to RGB images (n, 3, H, W) in [0, 1], on the model's
            device.
        invert: function from RGB images (n, 3, H, W) to latents.
        cfg: default guidance scale.
        compression: number of image pixels per latent pixel along each axis: with 8, a latent pixel covers
            8 x 8 image pixels.
    """

    family: str
    identity: str
    model: ModelPatcher
    encode: Callable[[str], tuple[Tensor, dict[str, Any]]]
    decode: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]
    cfg: float = DEMO_CFG
    compression: int = 8

    @property
    def network(self) -> torch.nn.Module:
        return network_of(self.model.get_model_object("diffusion_model"))

    @property
    def device(self) -> torch.device:
        return self.model.load_device

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latent of a square image whose width is `size` pixels."""
        channels = self.model.get_model_object("latent_format").latent_channels
        return (channels, size // self.compression, size // self.compression)


def load_source(family: str, options: Options) -> Source:
    """Load a model by name: a demo family, "checkpoint" (the user's file), or a tiny random network.

    The name of a tiny network is "random_" followed by the name of a family in tests/support/families.py.

    Raises:
        RASError: no model has this name, its weights are missing, or its network is not supported.
    """
    if family == CHECKPOINT:
        source = _checkpoint_source(Path(options.checkpoint))
    elif family.startswith(RANDOM):
        source = _random_source(family)
    elif family in DEMO_FAMILIES:
        source = _demo_source(family, options.weights)
    else:
        raise RASError(
            f"family {family!r}.",
            f"{', '.join(loader.FAMILIES)}, or {CHECKPOINT} with --checkpoint FILE.",
            "correct --families.",
        )
    adapter_for(source.network)
    return source


def has_weights(family: str, weights: str) -> bool:
    """Whether the weight files of a demo family exist; always True for names that are no demo family."""
    spec = DEMO_FAMILIES.get(family)
    return spec is None or all(
        (_weights_folder(weights) / name).is_file() for name in (spec.weights, loader.AUTOENCODER_FILE)
    )


def _weights_folder(weights: str) -> Path:
    return Path(weights) if weights else loader.WEIGHTS_DIR


def _demo_source(family: str, weights: str) -> Source:
    folder, kept = _weights_folder(weights), loader.WEIGHTS_DIR
    names = (DEMO_FAMILIES[family].weights, loader.AUTOENCODER_FILE)
    if not has_weights(family, weights):
        raise RASError(
            f"the weights of the demo family {family} are not in {path_end(folder)}.",
            f"the files {' and '.join(names)}.",
            "name the folder that has them with --weights; the pack's own are in its repository.",
        )
    loader.WEIGHTS_DIR = folder
    try:
        model, vae = loader.load_family(DEMO_FAMILIES[family])
    finally:
        loader.WEIGHTS_DIR = kept
    identity = f"{family}-{'-'.join(file_digest(folder / name) for name in names)}"
    decode, invert = _through_vae(vae)
    return Source(family, identity, model, _demo_text, decode, invert)


def _demo_text(text: str) -> tuple[Tensor, dict[str, Any]]:
    context, pooled = encode_prompt(text)
    # The mask is all ones, because the demo models attend to the padding rows after the words as well.
    return context, {"pooled_output": pooled, "attention_mask": torch.ones(1, context.shape[1]).long()}


def _through_vae(vae: comfy.sd.VAE) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    vae.output_device = vae.device  # copying images to the CPU and back would take longer than decoding

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents).movedim(-1, 1)[:, :3]

    def invert(pictures: Tensor) -> Tensor:
        return vae.encode(pictures.movedim(1, -1))

    return decode, invert


def _checkpoint_source(path: Path) -> Source:
    if not path.is_file():
        raise RASError(
            f"no checkpoint {str(path)!r}.",
            "an SD3, SD3.5 or Lumina 2 file with its text encoders and VAE inside.",
            "name such a file with --checkpoint FILE.",
        )
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    if model is None or clip is None or vae is None:
        missing = [name for name, part in (("model", model), ("CLIP", clip), ("VAE", vae)) if part is None]
        raise RASError(
            f"the checkpoint {path.name} contains no {' and no '.join(missing)}.",
            "a checkpoint from which ComfyUI's Load Checkpoint node can load model, CLIP and VAE.",
            "use the variant of the checkpoint that includes what is missing (for SD3: ..._incl_clips).",
        )

    def encode(text: str) -> tuple[Tensor, dict[str, Any]]:
        context, rest = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
        return context, rest

    decode, invert = _through_vae(vae)
    compression = vae.spacial_compression_encode()
    return Source(CHECKPOINT, file_digest(path), model, encode, decode, invert, CHECKPOINT_CFG, compression)


def _random_source(name: str) -> Source:
    """A tiny network of the tests with random weights; a fixed linear map decodes its latents to RGB."""
    family = importlib.import_module("support.families").FAMILIES[name.removeprefix(RANDOM)]
    model = family.build()
    channels = model.get_model_object("latent_format").latent_channels
    mix = torch.randn(3, channels, generator=torch.Generator().manual_seed(0)) / channels**0.5

    def encode(text: str) -> tuple[Tensor, dict[str, Any]]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return tuple(family.conditioning(seed)[0])

    def decode(latents: Tensor) -> Tensor:
        return torch.einsum("oc,nchw->nohw", mix, latents).mul(0.1).sigmoid()

    def invert(pictures: Tensor) -> Tensor:
        return torch.einsum("oc,nohw->nchw", mix, pictures - 0.5)

    return Source(name, f"{name}-0", model, encode, decode, invert, compression=1)
