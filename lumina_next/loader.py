"""Loads MODEL, CLIP and VAE of Lumina-Next from files in diffusers' layout, after checking their headers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.diffusers_convert
import comfy.model_management as model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.ops import disable_weight_init

from ..ras_core.errors import RASError, quoted
from .files import TEXT_ENCODER, TRANSFORMER, VAE, Header, Part, part_in_folder, read_header
from .model import build_patcher, guide_first_channels
from .network import LuminaNextDiT
from .text import load_clip, wrong_tokenizer

PIPELINES = ("LuminaText2ImgPipeline", "LuminaPipeline")
CHANNELS, PATCH = 4, 2
DECODER = ("decoder.", "post_quant_conv.", "taesd_decoder.")
DIFFUSERS_VAE = "decoder.up_blocks.0.resnets.0.norm1.weight"
LONGEST_JSON = 2**20
SHIFTS = (0.01, 100.0)  # of a noise schedule; published models have 1 to 6


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
        raise wrong_tokenizer(f"{text_encoder.name} has no tokenizer ({names}).")


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
    return model, clip, load_vae(headers["vae"])


def check_folder(folder: Path | None) -> None:
    """Check that a diffusers folder contains a Lumina-Next pipeline.

    Raises:
        RASError: the folder contains no pipeline, or another one, which the message names.
    """
    if folder is None:
        return
    pipeline = _read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in PIPELINES:
        found = f"contains a {_named(pipeline)}" if pipeline else "has no pipeline class in model_index.json"
        raise RASError(
            f"the folder {folder.name} {found}.",
            f"a folder whose model_index.json names {' or '.join(PIPELINES)}.",
            "choose such a folder, or no folder and a single file for each part.",
        )


def network_config(header: Header) -> dict[str, Any]:
    """Constructor arguments of the network, derived from the shapes of the weights in the file.

    Raises:
        RASError: the file does not contain the transformer of Lumina-Next.
    """
    shapes = header.shapes
    header.check_floats()
    if "time_caption_embed.caption_embedder.1.weight" not in shapes or "layers.0.gate" not in shapes:
        raise header.wrong_kind()
    try:
        hidden, heads = shapes["pad_token"][0], shapes["layers.0.gate"][0]
        config = {
            "in_channels": shapes["patch_embedder.proj.weight"][1] // PATCH**2,
            "hidden_size": hidden,
            "num_layers": header.count_layers(),
            "num_attention_heads": heads,
            "num_kv_heads": shapes["layers.0.attn1.to_k.weight"][0] // (hidden // heads),
            "ffn_size": shapes["layers.0.feed_forward.linear_1.weight"][0],
            "cross_attention_dim": shapes["layers.0.attn2.to_k.weight"][1],
            "out_channels": shapes["norm_out.linear_2.weight"][0] // PATCH**2,
        }
        network = LuminaNextDiT(**config, device=torch.device("meta"), operations=disable_weight_init)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise header.part.refuse(f"{header.name} is a Lumina-Next transformer without {error}.") from None
    except (RuntimeError, TypeError, AssertionError, OverflowError) as error:
        raise header.part.refuse(f"{header.name} has sizes that no network has ({error}).") from None
    header.check({name: tuple(t.shape) for name, t in network.state_dict().items()})
    beside = _read_json(header.paths[0].with_name("config.json"))
    if beside.get("_class_name") == "LuminaNextDiT2DModel":
        config["sample_size"] = _number(beside, "sample_size", 128, (PATCH, 2**16))
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
    if len(shape) != 4 or shape[1] != CHANNELS:
        raise header.part.refuse(
            f"{header.name} is a VAE with {shape[1] if shape[1:] else 0} latent channels."
        )


def load_vae(header: Header) -> comfy.sd.VAE:
    """Load a VAE whose header was checked.

    Raises:
        RASError: ComfyUI cannot load it, or it lacks weights of its decoder; ComfyUI would leave these at
            random values.
    """
    state = header.load()
    try:
        if DIFFUSERS_VAE in state:  # as ComfyUI does
            state = comfy.diffusers_convert.convert_vae_state_dict(state)
        names = frozenset(state)
        vae = comfy.sd.VAE(sd=state)
        vae.throw_exception_if_invalid()
    except model_management.OOM_EXCEPTION:
        raise
    except Exception as error:  # ComfyUI recognises a VAE by single tensors, and fails in many ways
        raise header.part.refuse(f"{header.name} cannot be loaded ({error}).") from error
    missing = sorted(vae.first_stage_model.state_dict().keys() - names)
    if missing := [name for name in missing if name.startswith(DECODER)]:
        raise header.part.refuse(f"{header.name} lacks weights of the decoder, such as {missing[0]}.")
    return vae


def _sampling_settings(folder: Path | None) -> dict[str, float]:
    """ComfyUI's sampling settings, with the shift of the noise schedule from the folder's scheduler config.
    They are {} if there is no scheduler config, or no shift in it.
    """
    config = _read_json(folder / "scheduler" / "scheduler_config.json") if folder else {}
    return {"shift": float(_number(config, "shift", 1.0, SHIFTS))} if "shift" in config else {}


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON configuration file; {} if there is none.

    Raises:
        RASError: the file is there, but cannot be used. Without its settings, images would differ.
    """
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LONGEST_JSON))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise RASError(
            f"{path.parent.name}/{path.name} cannot be read, or holds no settings in JSON.",
            "the file as it was published, such as that of Lumina-Next-SFT-diffusers.",
            "download the file again.",
        )
    return content


def _number(config: dict[str, Any], name: str, default: float, span: tuple[float, float]) -> float:
    """A number of a JSON configuration file, of the default's type.

    Raises:
        RASError: it is no such number, or outside of `span`.
    """
    value, kinds = config.get(name, default), (int,) if isinstance(default, int) else (int, float)
    if isinstance(value, kinds) and not isinstance(value, bool) and span[0] <= value <= span[1]:
        return value
    raise RASError(
        f"{name} = {quoted(value)} in a configuration file of Lumina-Next.",
        f"a number from {span[0]:g} to {span[1]:g}.",
        f"download the file again, or correct {name} in it.",
    )


def _named(value: Any) -> str:
    return value if isinstance(value, str) else quoted(value)
