"""Draws the thumbnails of templates whose models are too large to make an image here: a tile with the model's
name and, step by step, the share of the image that a run at the template's speed computes, by the plan. In
editing, it is the share of both images: regional steps compute nothing of the image that is edited.

Run `python -m dev.thumbnails` with ComfyUI's interpreter after the plans of a family or a template change.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw

from .pack import import_from_pack, register_pack
from .paths import ROOT

FOLDER = ROOT / "example_workflows"
SIZE = (640, 360)
IMAGE_ROWS, TEXT_ROWS = 4096, 512
"""Of one image of 1024 x 1024 pixels and of the prompt, for the cost of editing."""
LEFT, RIGHT, BAR_HEIGHT = 32, 608, 64
WITHOUT_TOP, WITH_TOP = 128, 240
WITHOUT, DENSE, REGIONAL = (110, 116, 130), (108, 140, 255), (255, 178, 62)


@dataclass(frozen=True)
class Tile:
    """What a tile says.

    Attributes:
        title: name of the model.
        subtitle: what the template does with it.
        family: name of the module of the model's adapter, by which its plans are found.
        is_edit: whether the model gets an image to edit.
    """

    title: str
    subtitle: str
    family: str
    is_edit: bool = False


TILES = {
    "ras_flux1": Tile("Flux.1 dev", "text to image", "flux"),
    "ras_flux2": Tile("Flux.2 dev", "text to image", "flux2"),
    "ras_flux2_klein_edit": Tile("Flux.2 Klein base", "edit an image", "flux2", is_edit=True),
    "ras_qwen_image": Tile("Qwen-Image", "text to image", "qwen_image"),
    "ras_qwen_image_edit": Tile("Qwen-Image-Edit", "edit an image", "qwen_image", is_edit=True),
    "ras_anima": Tile("Anima", "text to image", "cosmos_predict2"),
}
"""By name of the template."""


def draw(name: str) -> Image.Image:
    """The tile of a template."""
    tile, (speed, steps) = TILES[name], _settings(name)
    drawing = import_from_pack("ras_core.render.drawing")
    shares = _shares(tile, speed, steps)
    image = Image.new("RGB", SIZE, drawing.BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 22), tile.title, fill=drawing.TEXT, font=drawing.font(38))
    pen.text((LEFT, 70), f"{tile.subtitle} with Multirate RAS", fill=drawing.FAINT, font=drawing.font(20))
    pen.text((RIGHT, 18), speed, fill=REGIONAL, font=drawing.font(58), anchor="ra")
    slot, small = (RIGHT - LEFT) / steps, drawing.font(17)
    for top, each, colour in ((WITHOUT_TOP, (1.0,) * steps, WITHOUT), (WITH_TOP, shares, DENSE)):
        _bars(pen, top, slot, each, colour)
    below = BAR_HEIGHT + 8
    pen.text((LEFT, WITHOUT_TOP + below), f"without RAS: {steps} steps", fill=drawing.FAINT, font=small)
    pen.text((LEFT, WITH_TOP + below), _caption(tile, shares), fill=drawing.TEXT, font=small)
    return image


def _caption(tile: Tile, shares: tuple[float, ...]) -> str:
    """How many steps a run has. In editing, this depends on the size of the image that is edited."""
    about, what = ("about ", "both images") if tile.is_edit else ("", "the image")
    regional = sum(share < 1 for share in shares)
    told = f"{about}{len(shares)} steps, {regional} of them compute {100 * min(shares):.0f} % of {what}"
    return f"with RAS: {told}"


def _shares(tile: Tile, speed: str, steps: int) -> tuple[float, ...]:
    """The share of the image, or of both images, that each step computes."""
    plans = import_from_pack("ras_core.method.family_plans").family_plans(tile.family)
    plan: Any = plans.best(speed, "euler")
    if not tile.is_edit:
        return plan.resized(steps).shares
    budget = plan.full_steps / float(speed.removesuffix("x"))
    fitted = import_from_pack("ras_core.method.plan_fitting").fitted(plan.shares, budget, _cost_of_editing)
    shares = replace(plan, shares=fitted).resized(steps).shares
    return tuple(share if share == 1 else share / 2 for share in shares)


def _cost_of_editing(share: float) -> float:
    """The cost of a regional step in multiples of a dense step's. Both images are equally large."""
    return (share * IMAGE_ROWS + TEXT_ROWS) / (2 * IMAGE_ROWS + TEXT_ROWS)


def _settings(name: str) -> tuple[str, int]:
    """Speed and number of steps that the template sets."""
    nodes = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    values = {node["type"]: node["widgets_values"] for node in nodes}
    steps = values["KSampler"][2] if "KSampler" in values else values["Flux2Scheduler"][0]
    return values["RASPatchModel"][0], steps


def _bars(pen: ImageDraw.ImageDraw, top: int, slot: float, shares: tuple[float, ...], colour: tuple) -> None:
    """One bar for each step, as high as its share of the image."""
    bottom = top + BAR_HEIGHT
    for step, share in enumerate(shares):
        box = (LEFT + step * slot, bottom - share * BAR_HEIGHT, LEFT + (step + 1) * slot - 3, bottom)
        pen.rectangle(box, fill=colour if share == 1 else REGIONAL)


def main() -> None:
    """Write all tiles."""
    register_pack()
    for name in TILES:
        draw(name).save(FOLDER / f"{name}.jpg", quality=76, optimize=True)


if __name__ == "__main__":
    main()
