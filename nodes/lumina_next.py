"""RASLuminaNextLoader: loads Lumina-Next, a model used in the RAS paper. ComfyUI has no loader for it."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..lumina_next.files import TEXT_ENCODER, TRANSFORMER, VAE, Part
from ..lumina_next.loader import Sources, load_lumina_next
from ..ras_core.errors import RASError
from .checks import CheckedNode
from .settings import ADVANCED, CATEGORY, found_by

NO_FOLDER = "none"
FROM_FOLDER = "from folder"
FIRST_THREE, ALL = "first three", "all"
PARTS = (TRANSFORMER, TEXT_ENCODER, VAE)


class RASLuminaNextLoader(CheckedNode):
    """Loads the files of Lumina-Next-T2I; outputs MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASLuminaNextLoader",
            display_name="RAS Lumina-Next Loader",
            category=CATEGORY,
            **found_by("Lumina-T2X", "Lumina-Next-T2I", "diffusers"),
            description="Loads Lumina-Next-T2I in diffusers' layout, from a folder in models/diffusers or "
            "from single files. Outputs MODEL (without RAS), CLIP and VAE. Nothing is downloaded.",
            inputs=[
                io.Combo.Input(
                    "folder", options=[NO_FOLDER, *diffusers_folders()], default=NO_FOLDER,
                    tooltip="A folder in models/diffusers that contains model_index.json, such as "
                    "Lumina-Next-SFT-diffusers.",
                ),
                *(_file_input(part) for part in PARTS),
                io.Combo.Input(
                    "guidance_channels", options=[FIRST_THREE, ALL], default=FIRST_THREE, **ADVANCED,
                    tooltip="The latent channels to which cfg is applied. The published pipeline applies "
                    "cfg to the first three of the four channels.",
                ),
                io.Float.Input(
                    "scaling_watershed", default=1.0, min=0.0, max=1.0, step=0.01, **ADVANCED,
                    tooltip="The time at which the scaling of the position encoding changes; at time 0, the "
                    "image is noise, at time 1, it is finished. Before this time, all frequencies of the "
                    "encoding are scaled to the image size. After it, mainly the low frequencies are "
                    "scaled. With 1, all frequencies are scaled during the whole run; 0.3 keeps more detail "
                    "than 1. Images with as many pixels as 1024 x 1024 need no scaling, so this input does "
                    "not change them.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A MODEL without RAS, for RAS Patch Model or "
                "any sampler node."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder, Gemma-2B, for CLIP Text "
                "Encode."),
                io.Vae.Output(display_name="vae", tooltip="The VAE of this model."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, folder: str, transformer: str, text_encoder: str, vae: str, guidance_channels: str,
        scaling_watershed: float,
    ) -> io.NodeOutput:  # fmt: skip
        names = {"folder": folder, "transformer": transformer, "text_encoder": text_encoder, "vae": vae}
        cls.check(guidance_channels=guidance_channels, scaling_watershed=scaling_watershed, **names)
        chosen = zip(PARTS, (transformer, text_encoder, vae), strict=True)
        files = {part.label: _file_path(part, name) for part, name in chosen if name != FROM_FOLDER}
        sources = Sources(None if folder == NO_FOLDER else _folder_path(folder), files)
        return io.NodeOutput(
            *load_lumina_next(
                sources, guide_all_channels=guidance_channels == ALL, scaling_watershed=scaling_watershed
            )
        )


def diffusers_folders() -> list[str]:
    """Folders with a model_index.json in ComfyUI's models/diffusers, as relative paths."""
    found = []
    for base in folder_paths.get_folder_paths("diffusers"):
        for root, folders, files in os.walk(base, followlinks=True):
            if "model_index.json" in files:
                found.append(os.path.relpath(root, base))
                folders.clear()  # a pipeline's folder contains no other pipelines
    return sorted(found)


def _file_input(part: Part) -> io.Input:
    return io.Combo.Input(
        part.label, options=[FROM_FOLDER, *folder_paths.get_filename_list(part.models)], default=FROM_FOLDER,
        **ADVANCED, tooltip={
            "transformer": "A file in models/diffusion_models that is loaded instead of the folder's "
            "transformer.",
            "text_encoder": "A Gemma-2B file in models/text_encoders that is loaded instead of the folder's "
            "text encoder. The folder of this file must also contain Gemma-2B's tokenizer.json.",
            "vae": "A file in models/vae that is loaded instead of the folder's VAE. The VAE of SDXL works "
            "too.",
        }[part.label],
    )  # fmt: skip


def _file_path(part: Part, name: str) -> Path:
    path = folder_paths.get_full_path(part.models, name)
    if path is None:
        raise part.refuse(f"the {part.label} file {name} is not in ComfyUI's models/{part.models}.")
    return Path(path)


def _folder_path(name: str) -> Path:
    for base in folder_paths.get_folder_paths("diffusers"):
        path = Path(base) / name
        if path.is_dir():
            return path
    raise RASError(
        f"the folder {name} is not in ComfyUI's models/diffusers.",
        "a folder in models/diffusers that contains model_index.json.",
        "put the folder there, or choose single files.",
    )
