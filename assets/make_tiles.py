"""Draw the tiles of the workflow templates: example_workflows/NAME.jpg, shown in ComfyUI's list of templates.

Tiles of the demo templates show the image that the template makes, and what its last step computed. To sample
it, ComfyUI is needed: set COMFYUI_PATH. The other templates need a model that is not in the pack; their tiles
show the model's name on a grid of tokens, each in its own colour and with its own pattern.

python assets/make_tiles.py [NAME ...]
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from make_art import BACKGROUND, CACHED, FAINT, TEXT
from PIL import Image, ImageDraw, ImageFont

TEMPLATES = Path(__file__).resolve().parents[1] / "example_workflows"
WIDTH, HEIGHT, CAPTION = 640, 360, 56
CELL = 40

Pattern = Callable[[float, float], float]
"""From a cell's column and row, each from 0 to 1, to its brightness from 0 to 1."""


def ring(x: float, y: float) -> float:
    return 1.0 if 0.3 < math.hypot(x - 0.5, (y - 0.5) * HEIGHT / WIDTH) < 0.5 else 0.0


def diagonal(x: float, y: float) -> float:
    return max(0.0, 1 - abs(x - y) * 3)


def wave(x: float, y: float) -> float:
    return 1.0 if abs(y - 0.5 - 0.3 * math.sin(2 * math.pi * x)) < 0.2 else 0.0


MODELS: dict[str, tuple[str, tuple[int, int, int], Pattern]] = {
    "ras_sd3": ("SD3 and SD3.5", (230, 159, 0), ring),
    "ras_lumina2": ("Lumina-Image 2.0", (86, 180, 233), diagonal),
    "ras_lumina_next": ("Lumina-Next", (0, 158, 115), wave),
}
DEMOS = {
    "ras_1_start_here": "Demo SD3: nothing to download",
    "ras_lumina2_demo": "Demo Lumina 2: nothing to download",
}


def model_tile(name: str) -> Image.Image:
    title, colour, pattern = MODELS[name]
    tile = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(tile)
    columns, rows = WIDTH // CELL, HEIGHT // CELL
    for row in range(rows):
        for column in range(columns):
            lit = pattern((column + 0.5) / columns, (row + 0.5) / rows)
            mixed = tuple(round(c + (m - c) * lit * 0.75) for c, m in zip(CACHED, colour, strict=True))
            x, y = column * CELL, row * CELL
            draw.rounded_rectangle((x + 3, y + 3, x + CELL - 3, y + CELL - 3), radius=6, fill=mixed)
    draw.rectangle((0, 118, WIDTH, 242), fill=BACKGROUND)
    draw.rectangle((0, 118, 12, 242), fill=colour)
    draw.text((36, 132), title, fill=TEXT, font=ImageFont.load_default(52))
    draw.text(
        (36, 198), "RAS Patch Model with your own checkpoint", fill=FAINT, font=ImageFont.load_default(24)
    )
    return tile


def demo_tile(name: str) -> Image.Image:
    image, mask = sampled(json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")))
    tile = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    side = HEIGHT - CAPTION
    for x, shown in ((0, image), (WIDTH // 2, mask)):
        tile.paste(
            shown.resize((WIDTH // 2 - 4, WIDTH // 2 - 4)).crop((0, 8, WIDTH // 2 - 4, 8 + side)), (x + 2, 0)
        )
    ImageDraw.Draw(tile).text((20, side + 10), DEMOS[name], fill=TEXT, font=ImageFont.load_default(28))
    return tile


def sampled(workflow: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    """The image of a demo template, and the frame of its last step."""
    import torch
    from ras_pack.demo.loader import load_demo_model
    from ras_pack.demo.prompt import encode_prompt
    from ras_pack.nodes.sampler import sample_with_trace
    from ras_pack.ras_core.render.frames import mask_frames

    def values(kind: str) -> list[list[Any]]:
        return [node["widgets_values"] for node in workflow["nodes"] if node["type"] == kind]

    names = (
        "speed", "seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise", "sample_ratio",
        "start_percent", "end_percent", "error_reset_every", "cuda_graphs", "kv_cache",
    )  # fmt: skip
    settings = dict(zip(names, values("RASKSampler")[0], strict=True))
    settings.pop(None)
    texts = [*values("RASDemoPrompt")[0], ""]
    conditionings = [[[context, {"pooled_output": pooled}]] for context, pooled in map(encode_prompt, texts)]
    ((width, height, _),) = values("EmptySD3LatentImage")
    with torch.inference_mode():
        model, vae = load_demo_model(values("RASDemoModel")[0][0])
        latent = {"samples": torch.zeros(1, 16, height // 8, width // 8)}
        positive, negative = conditionings
        sampled, trace = sample_with_trace(model, latent, positive=positive, negative=negative, **settings)
        images = vae.decode(sampled["samples"]).clamp(0, 1).numpy()
    frame = mask_frames(trace, images)[-1][:height, :width]
    return tuple(Image.fromarray((each * 255).astype(np.uint8)) for each in (images[0], frame))


def prepare_comfyui() -> None:
    """Make ComfyUI and the pack importable, without a GPU."""
    root = TEMPLATES.parent
    sys.path[:0] = [os.environ["COMFYUI_PATH"], str(root)]
    import comfy.cli_args

    from dev.pack import register_pack

    comfy.cli_args.args.cpu = True
    register_pack()


def main() -> None:
    names = sys.argv[1:] or [*MODELS, *DEMOS]
    if any(name in DEMOS for name in names):
        prepare_comfyui()
    for name in names:
        tile = model_tile(name) if name in MODELS else demo_tile(name)
        tile.save(TEMPLATES / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
