"""Loads MODEL, CLIP and VAE of Lumina-Next from files in diffusers' layout, after checking their headers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.ops import disable_weight_init

from ..ras_core.errors import RASError
from .files import TEXT_ENCODER, TRANSFORMER, VAE, Header, Part, part_in_folder, read_header
from .model import build_patcher, guide_first_channels
from .network import LuminaNextDiT
from .text import load_clip, wrong_tokenizer

PIPELINES = ("LuminaText2ImgPipeline", "LuminaPipeline")
CHANNELS, PATCH = 4, 2


@dataclass(frozen=True)
class Sources:
    """The files that the user chose. For each part, a single file takes precedence over the diffusers folder.

    Attributes:
        folder: a folder in diffusers' layout, with model_index.json; None if no folder was chosen.
        files: the single files, by label of the part ("transformer", "text_encoder", "vae").
    """

    folder: Path | None
    files: dict[str, Path]

    def header(self, part: Part) -> Header:
        """Read the headers of the weight files of one part of the model: transformer, text encoder or VAE.

        Raises:
            RASError: neither a file nor a folder was chosen for this part, or the choice cannot be used.
        """
        path = self.files.get(part.label)
        if path is None and self.folder is None:
            raise RASError(
                f"neither a folder nor a file was chosen for {part.label}.",
                f"{part.needed}.",
                f"put the file into ComfyUI's models/{part.models}, or the whole folder into "
                "models/diffusers, and choose it here.",
            )
        return read_header(part, path or part_in_folder(part, self.folder))

    def tokenizer(self, text_encoder: Header) -> Path:
        """Path of the text encoder's tokenizer.json, next to its weights or in the folder's tokenizer/.

        Raises:
            RASError: there is no tokenizer file in either location.
        """
        weights = text_encoder.paths[0]
        candidates = [weights.with_suffix(".tokenizer.json"), weights.with_name("tokenizer.json")]
        if self.folder is not None:
            candidates.append(self.folder / "tokenizer" / "tokenizer.json")
        for path in candidates:
            if path.is_file():
                return path
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in candidates)
        raise wrong_tokenizer(f"{text_encoder.name} has no tokenizer: none of these files exists: {names}.")


def load_lumina_next(
    sources: Sources, *, guide_all_channels: bool = False, scaling_watershed: float = 1.0
) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Load transformer, text encoder and VAE, after checking the headers of all their files.

    Raises:
        RASError: a file is missing or wrong. The message says what the file is and which file is needed.
    """
    check_folder(sources.folder)
    headers = {part.label: sources.header(part) for part in (TRANSFORMER, TEXT_ENCODER, VAE)}
    config = network_config(headers["transformer"])
    check_vae(headers["vae"])
    text_encoder = headers["text_encoder"]
    clip = load_clip(text_encoder, sources.tokenizer(text_encoder), config["cross_attention_dim"])
    model = build_patcher(
        {**config, "scaling_watershed": scaling_watershed},
        headers["transformer"].load(),
        _sampling_settings(sources.folder),
    )
    if not guide_all_channels:
        guide_first_channels(model)
    vae = comfy.sd.VAE(sd=headers["vae"].load())
    vae.throw_exception_if_invalid()
    return model, clip, vae


def check_folder(folder: Path | None) -> None:
    """Check that a diffusers folder contains a Lumina-Next pipeline.

    Raises:
        RASError: the folder contains no pipeline, or another one, which the message names.
    """
    if folder is None:
        return
    pipeline = _read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in PIPELINES:
        found = f"contains a {pipeline}" if pipeline else "has no pipeline class in model_index.json"
        raise RASError(
            f"the folder {folder.name} {found}.",
            f"a diffusers folder whose model_index.json names {' or '.join(PIPELINES)},"
            " such as Lumina-Next-SFT-diffusers.",
            "choose such a folder, or choose no folder and a single file for each part.",
        )


def network_config(header: Header) -> dict[str, Any]:
    """Constructor arguments of the network, derived from the shapes of the weights in the file.

    Raises:
        RASError: the file does not contain the transformer of Lumina-Next.
    """
    shapes = header.shapes
    if "time_caption_embed.caption_embedder.1.weight" not in shapes or "layers.0.gate" not in shapes:
        raise header.wrong_kind()
    try:
        hidden, heads = shapes["pad_token"][0], shapes["layers.0.gate"][0]
        config = {
            "in_channels": shapes["patch_embedder.proj.weight"][1] // PATCH**2,
            "hidden_size": hidden,
            "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
            "num_attention_heads": heads,
            "num_kv_heads": shapes["layers.0.attn1.to_k.weight"][0] // (hidden // heads),
            "ffn_size": shapes["layers.0.feed_forward.linear_1.weight"][0],
            "cross_attention_dim": shapes["layers.0.attn2.to_k.weight"][1],
            "out_channels": shapes["norm_out.linear_2.weight"][0] // PATCH**2,
        }
        network = LuminaNextDiT(**config, device=torch.device("meta"), operations=disable_weight_init)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise header.part.refuse(f"{header.name} is a Lumina-Next transformer without {error}.") from None
    header.check({name: tuple(t.shape) for name, t in network.state_dict().items()})
    beside = _read_json(header.paths[0].with_name("config.json"))
    if beside.get("_class_name") == "LuminaNextDiT2DModel":
        config["sample_size"] = beside.get("sample_size", 128)
    return config


def check_vae(header: Header) -> None:
    """Check that a file contains a VAE for the latents of the transformer, which have 4 channels.

    Raises:
        RASError: the file is not a VAE, or its latents have another number of channels.
    """
    names = ("decoder.conv_in.weight", "taesd_decoder.1.weight")
    shape = next((header.shapes[name] for name in names if name in header.shapes), None)
    if shape is None:
        raise header.wrong_kind()
    if shape[1] != CHANNELS:
        raise header.part.refuse(f"{header.name} is a VAE with {shape[1]} latent channels.")


def _sampling_settings(folder: Path | None) -> dict[str, float]:
    """ComfyUI's sampling settings, with the shift of the noise schedule from the folder's scheduler config.
    They are {} if there is no scheduler config, or no shift in it.
    """
    config = _read_json(folder / "scheduler" / "scheduler_config.json") if folder else {}
    return {"shift": float(config["shift"])} if "shift" in config else {}


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON configuration file; {} if the file is missing or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
