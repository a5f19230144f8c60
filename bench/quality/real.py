"""Real images, which the Frechet distance compares sampled images with, in two halves.

The images come either from a folder of image files, or from the emoji artwork that training/ renders
(pictures.npy and items.json), of which only the held-out images are used. Every second image belongs to the
second half, so that both halves have the same distribution.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...ras_core.errors import RASError, path_end
from .prompts import background_of

PICTURES, ITEMS = "pictures.npy", "items.json"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}


def real_halves(folder: Path, size: int, batch: int) -> list[Iterator[Tensor]]:
    """The two halves of the real images, each an iterator of RGB batches (b, 3, size, size) in [0, 1].

    Raises:
        RASError: the folder has fewer than four image files.
    """
    if (folder / PICTURES).is_file() and (folder / ITEMS).is_file():
        return [_rendered(folder, rows, size, batch) for rows in _artwork_halves(folder)]
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
    if len(files) < 4:
        raise RASError(
            f"{len(files)} images in {path_end(folder)}.",
            f"four image files or more, or {PICTURES} and {ITEMS} as training/ renders them.",
            "correct --real, or leave it out, and the Frechet distance is skipped.",
        )
    return [_opened(files[half::2], size, batch) for half in (0, 1)]


def render_held_out(archive: Path, out: Path) -> int:
    """Render the held-out artwork of `emoji.zip` with resvg-py, to a folder for `--real`.

    Returns:
        The number of images.
    """
    from ...training import data

    items = [item for item in data.read_items(archive) if data.is_held_out(item.hexcode, item.style)]
    out.mkdir(parents=True, exist_ok=True)
    shape = (len(items), data.PICTURE_SIZE, data.PICTURE_SIZE, 4)
    pictures = np.lib.format.open_memmap(out / PICTURES, mode="w+", dtype=np.uint8, shape=shape)
    for row, item in enumerate(items):
        # The process pool of training/data.py cannot be used: its workers could not import the pack, which is
        # registered in this process only.
        pictures[row] = data._render(archive, item.file)
    pictures.flush()
    (out / ITEMS).write_text(json.dumps([vars(item) for item in items]), encoding="utf-8")
    return len(items)


def _artwork_halves(folder: Path) -> list[list[int]]:
    """Rows of the held-out images, in two halves. The models were trained on the other images."""
    from ...training import data

    items = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
    held_out = [i for i, e in enumerate(items) if data.is_held_out(e["hexcode"], e["style"])]
    return [held_out[0::2], held_out[1::2]]


def _rendered(folder: Path, rows: Sequence[int], size: int, batch: int) -> Iterator[Tensor]:
    """Batches of held-out artwork on its background colours, scaled and shifted at random as in training."""
    from ...training import data

    items = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
    pictures = np.load(folder / PICTURES, mmap_mode="r")
    for first in range(0, len(rows), batch):
        part = list(rows[first : first + batch])
        layers = torch.from_numpy(np.stack([pictures[row] for row in part]))
        rng = random.Random(zlib.crc32(str(part).encode()))
        names = [background_of(items[i]["hexcode"], items[i]["style"], list(data.COLOURS)) for i in part]
        colours = [tuple(c / 255 for c in data.COLOURS[name]) for name in names]
        backgrounds = [data.Background((), colour, colour, 0.0) for colour in colours]
        canvas = data.gradient_canvas(backgrounds, size, torch.device("cpu"))
        scale = torch.tensor([rng.uniform(0.80, 0.95) for _ in part])
        shift = torch.tensor([[rng.uniform(-0.04, 0.04) for _ in "xy"] for _ in part])
        yield data.compose(layers, canvas, scale, shift)


def _opened(files: Sequence[Path], size: int, batch: int) -> Iterator[Tensor]:
    for first in range(0, len(files), batch):
        yield torch.cat([_open(path, size) for path in files[first : first + batch]])


def _open(path: Path, size: int) -> Tensor:
    """An image file, cropped to its central square and resized: RGB (1, 3, size, size) in [0, 1]."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    tensor = torch.from_numpy(square).permute(2, 0, 1)[None]
    return F.interpolate(tensor, size=(size, size), mode="bilinear", antialias=True)
