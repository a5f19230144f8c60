"""Images of simple subjects (artwork or drawn shapes) on plain and on busy backgrounds, with exact masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...ras_core.errors import RASError, path_end
from ..quality.options import Options

KINDS = ("plain", "busy")
Layers = tuple[Tensor, Tensor]
"""The subjects in RGB, multiplied by their masks, (n, 3, s, s), and the masks, (n, 1, s, s)."""


@dataclass(frozen=True)
class Scenes:
    """Images to start the runs from.

    Attributes:
        images: background kind -> RGB (n, 3, size, size) in [0, 1].
        mask: (n, 1, size, size), 1 where the subject is.
        texts: prompts for the model.
    """

    images: dict[str, Tensor]
    mask: Tensor
    texts: list[str]


def make_scenes(options: Options, artwork: str) -> Scenes:
    """One scene per prompt. The subject of a scene is the prompt's artwork if `artwork`, the folder with the
    artwork, is given. Otherwise the subject is a drawn shape.
    """
    if artwork:
        subject, mask, texts = _artwork(Path(artwork), options)
    else:
        subject, mask = _shapes(len(options.prompts), options.size)
        texts = [prompt.text for prompt in options.prompts]
    canvases = {"plain": plain(len(mask), options.size), "busy": busy(len(mask), options.size)}
    return Scenes({kind: subject + canvas * (1 - mask) for kind, canvas in canvases.items()}, mask, texts)


def plain(count: int, size: int) -> Tensor:
    """Plain backgrounds: one light colour per image."""
    colours = torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.5
    return colours[:, :, None, None].expand(-1, -1, size, size)


def busy(count: int, size: int) -> Tensor:
    """Busy backgrounds of gratings, blobs and grain in many colours, with fine detail and high contrast
    everywhere.
    """
    generator = torch.Generator().manual_seed(2)
    axis = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    canvas = torch.full((count, 3, size, size), 0.5)
    for _ in range(6):
        angle, pitch, phase = (torch.rand(count, 3, 1, 1, generator=generator) for _ in range(3))
        wave = (x * torch.cos(angle * torch.pi) + y * torch.sin(angle * torch.pi)) * (8 + 40 * pitch)
        canvas = canvas + 0.12 * torch.sign(torch.sin(2 * torch.pi * (wave + phase)))
    for cells, strength in ((max(size // 32, 2), 0.5), (max(size // 8, 2), 0.3), (size, 0.08)):
        noise = torch.rand(count, 3, cells, cells, generator=generator) - 0.5
        canvas = canvas + strength * F.interpolate(noise, size=(size, size), mode="bilinear")
    return canvas.clamp(0, 1)


def _shapes(count: int, size: int) -> Layers:
    """Drawn subjects: discs, squares, triangles and rings, each in one flat colour."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = (x.square() + y.square()).sqrt()
    forms = [
        radius < 0.55,
        (x.abs() < 0.5) & (y.abs() < 0.5),
        (y < 0.5) & (y > 1.8 * x.abs() - 0.6),
        (radius < 0.6) & (radius > 0.3),
    ]
    mask = torch.stack([forms[i % len(forms)] for i in range(count)])[:, None].float()
    colours = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(3))
    return mask * colours, mask


def _artwork(folder: Path, options: Options) -> tuple[Tensor, Tensor, list[str]]:
    """One artwork per prompt, the mask of each artwork, and the text of each prompt. The background colour is
    removed from the texts, since the scenes have other backgrounds.
    """
    items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    rows = {(item["hexcode"], item["style"]): row for row, item in enumerate(items)}
    found = [(p, rows[p.hexcode, p.style]) for p in options.prompts if (p.hexcode, p.style) in rows]
    if len(found) < len(options.prompts):
        raise RASError(
            f"{len(options.prompts) - len(found)} of the prompts have no artwork in {path_end(folder)}.",
            "the held-out prompts and the images that training/ renders.",
            "leave out --artwork; simple shapes are then drawn instead.",
        )
    images = np.load(folder / "pictures.npy", mmap_mode="r")
    layers = torch.from_numpy(np.stack([images[row] for _, row in found])).permute(0, 3, 1, 2).float() / 255
    layers = F.interpolate(layers, size=(options.size, options.size), mode="area")
    return layers[:, :3], layers[:, 3:], [prompt.text.rpartition(" on ")[0] for prompt, _ in found]
