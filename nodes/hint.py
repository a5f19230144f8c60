"""Estimates a run at the chosen speed before it starts, for a line of text in the node.

The browser sends the speed, the number of steps, denoise, the sampler, and what it knows about the model to
ROUTE: the family of a demo model, or the name of the file that the graph loads; the chain of nodes that the
model comes from (see model_source.py); and the size of the image. The model is not loaded. If RAS Calibrate
has saved plans for this chain and size, the estimate is from these plans; otherwise it is from the plans of
the model's family, which is recognised by the names of the tensors in the file.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ..ras_core.config import MAX_STEPS
from ..ras_core.host.options import PlanSet
from ..ras_core.host.outlook import MOST_CFG, inpainting_outlook, measured_outlook, outlook
from ..ras_core.host.plan_files import plans_of_source
from ..ras_core.host.plans import PLAN_SPEEDS
from .live import add_route
from .model_source import digest

ROUTE = "/multirate_ras/hint"
FOLDERS = ("checkpoints", "diffusion_models")
LEAST_DENOISE = 1e-4
"""Smallest denoise above 0; KSampler's input has two decimals."""

LONGEST_HEADER = 2**24  # bytes; about ten times the header of a large checkpoint

FAMILIES = {
    "sd3": ("joint_blocks.0.",),
    "lumina2": ("noise_refiner.0.", "cap_embedder."),
    "chroma": ("double_blocks.0.img_attn", "distilled_guidance_layer."),
    "flux2": ("double_blocks.0.img_attn", "double_stream_modulation_img."),
    "hunyuan_image": ("double_blocks.0.img_attn", "txt_in.individual_token_refiner."),
    "flux": ("double_blocks.0.img_attn", "single_blocks.0.linear1"),  # after those with the same blocks
    "qwen_image": ("transformer_blocks.0.", "txt_norm."),  # Mage-Flow too, which has the same plans
    "ideogram4": ("embed_image_indicator.",),
    "cosmos_predict2": ("blocks.0.mlp.layer1.",),
    "krea2": ("txtfusion.",),
    "aura_flow": ("double_layers.0.", "cond_seq_linear."),
    "hidream": ("double_stream_blocks.0.", "caption_projection."),
    "kandinsky5": ("visual_transformer_blocks.0.",),
}
"""By family: parts of tensor names. A file belongs to the first family all of whose parts occur in its tensor
names. Each name is that of the adapter's module, by which `family_plans` finds the plans of a run.
"""


async def hint(request: web.Request) -> web.Response:
    """Answer a GET request with the result of `answer_to`. The query has a speed, a number of steps, a
    sampler, a family or a file, and optionally the sampler node's denoise and cfg, a source (a chain of
    nodes, as JSON), a width and a height, and `inpainting` if a part of the latent is given.
    """
    try:
        answer = await asyncio.to_thread(answer_to, request.query)
    except ValueError:
        return web.json_response({"error": "Expected a speed, steps, and optionally a sampler."}, status=400)
    return web.json_response(answer)


def answer_to(query: Mapping[str, str]) -> dict[str, Any]:
    """The answer to a request: what `outlook` returns, with "cfg" as a further word of `unmeasured`; and
    `unknown` if the model's file is missing, because the number of steps depends on the model.

    Raises:
        ValueError: a value is missing or invalid.
    """
    speed, steps = query.get("speed"), int(query.get("steps", ""))
    denoise = float(query.get("denoise") or 1)
    if (
        speed not in PLAN_SPEEDS
        or not 1 <= steps <= MAX_STEPS
        or not (denoise == 0 or LEAST_DENOISE <= denoise <= 1)
    ):
        raise ValueError("no such speed, number of steps or denoise")
    settings, cfg = (speed, steps, query.get("sampler"), denoise), float(query.get("cfg") or 1)
    plans, inpaints = _measured(query), bool(query.get("inpainting"))
    if plans is not None and not inpaints:
        answer = measured_outlook(plans, *settings)
        if answer is not None:
            return answer
    family = query.get("family") or family_of_file(query.get("file", ""))
    if inpaints:
        answer = inpainting_outlook(family, *settings, plans)
    else:
        answer = outlook(family, *settings, _pixels(query))
        if cfg > MOST_CFG and answer["closeness"] is not None:
            answer |= {"closeness": None, "unmeasured": "cfg"}
    return answer | {"unknown": True} if is_missing(query) and answer["time"] < 1 else answer


def _pixels(query: Mapping[str, str]) -> int | None:
    """The number of pixels of the query's image; None if it names no size.

    Raises:
        ValueError: its width or height is no whole number.
    """
    sizes = query.get("width"), query.get("height")
    return int(sizes[0]) * int(sizes[1]) if all(sizes) else None


def is_missing(query: Mapping[str, str]) -> bool:
    """Whether the query names a file that is not in ComfyUI's model folders: its family is not known."""
    return not query.get("family") and bool(query.get("file")) and _path_of(query["file"]) is None


def _measured(query: Mapping[str, str]) -> PlanSet | None:
    """The plans that RAS Calibrate has saved for the model and the image size of a query.

    Raises:
        ValueError: the query's size or its chain of nodes is invalid.
    """
    if not {"source", "width", "height"} <= query.keys():
        return None
    pixels = int(query["height"]), int(query["width"])
    try:
        chain = json.loads(query["source"])
        return plans_of_source(digest(chain), pixels) if isinstance(chain, list) else None
    except RecursionError as error:
        raise ValueError("the chain of nodes is too deep") from error


def family_of_file(name: str) -> str | None:
    """The family of a file in ComfyUI's model folders; None if the file or its family is unknown."""
    path = _path_of(name)
    return None if path is None else family_of(_tensor_names(Path(path)))


def _path_of(name: str) -> str | None:
    return next(filter(None, (folder_paths.get_full_path(folder, name) for folder in FOLDERS if name)), None)


def family_of(names: Iterable[str]) -> str | None:
    """The family of a file whose tensors have these names."""
    text = "\n".join(names)
    return next((family for family, parts in FAMILIES.items() if all(part in text for part in parts)), None)


def _tensor_names(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file; none if it is not one."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
    except (OSError, ValueError, RecursionError, struct.error):
        return []
    return list(header) if isinstance(header, dict) else []


def register_hint() -> None:
    """Register ROUTE with ComfyUI's server; do nothing if no server runs or ROUTE is already registered."""
    add_route("get", ROUTE, hint)
