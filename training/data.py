"""Images and prompts for training: rendering, held-out images, random prompts and backgrounds."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.prompt import MAX_WORDS, WORD_DIM, split_words, word_vector
from .collect import Item

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SIZE = 512
HELD_OUT_ONE_IN = 10

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (18, 18, 20),
    "gray": (140, 144, 150),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (253, 216, 80),
    "green": (72, 166, 84),
    "mint": (178, 235, 205),
    "teal": (26, 140, 140),
    "blue": (56, 120, 220),
    "sky": (150, 208, 246),
    "navy": (26, 42, 92),
    "purple": (124, 76, 178),
    "lavender": (205, 190, 242),
    "pink": (247, 168, 196),
    "brown": (122, 82, 54),
    "beige": (236, 220, 192),
}


@dataclass(frozen=True)
class Background:
    """A background: a plain colour, or a gradient between two colours, as RGB in 0..1.

    `words` name it in prompts.
    """

    words: tuple[str, ...]
    top: tuple[float, ...]
    bottom: tuple[float, ...]
    angle: float


def is_held_out(hexcode: str, style: str) -> bool:
    """Whether an image, given by its `hexcode` and style, is excluded from training.

    A tenth of all images is excluded. They are selected by the CRC-32 of the text "HEXCODE:style".
    """
    return zlib.crc32(f"{hexcode.upper()}:{style}".encode()) % HELD_OUT_ONE_IN == 0


def read_items(archive: Path) -> list[Item]:
    """The items of all images in an archive, without the images."""
    with zipfile.ZipFile(archive) as file:
        return [Item(**entry) for entry in json.loads(file.read("items.json"))]


def render_all(archives: list[Path], items: list[Item], out: Path, workers: int) -> None:
    """Render all items into one .npy file; `items[i]` is in the archive `archives[i]`.

    The file contains premultiplied RGBA (n, 512, 512, 4), uint8.
    """
    shape = (len(items), PICTURE_SIZE, PICTURE_SIZE, 4)
    pictures = np.lib.format.open_memmap(out, mode="w+", dtype=np.uint8, shape=shape)
    with ProcessPoolExecutor(workers) as pool:
        jobs = pool.map(_render, archives, [item.file for item in items], chunksize=16)
        for row, picture in enumerate(jobs):
            pictures[row] = picture
    pictures.flush()


def render_svg(text: str, size: int) -> Image.Image:
    """Render an SVG text to RGBA; its longer side becomes `size` pixels."""
    import resvg_py
    from PIL import Image

    data = resvg_py.svg_to_bytes(svg_string=text, width=size, height=size, dpi=96)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


@lru_cache(maxsize=4)
def _open_archive(archive: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _render(archive: Path, name: str) -> np.ndarray:
    """Render one file of an archive to premultiplied RGBA (512, 512, 4), centred."""
    from PIL import Image

    data = _open_archive(archive).read(name)
    if name.endswith(".svg"):
        picture = render_svg(data.decode("utf-8"), PICTURE_SIZE)
    else:
        picture = Image.open(io.BytesIO(data))
    picture = picture.convert("RGBA").convert("RGBa")
    canvas = Image.new("RGBa", (PICTURE_SIZE, PICTURE_SIZE))
    factor = PICTURE_SIZE / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(picture, ((PICTURE_SIZE - size[0]) // 2, (PICTURE_SIZE - size[1]) // 2))
    return np.asarray(canvas)


def random_background(rng: random.Random) -> Background:
    """A random background.

    Its colours are those of `COLOURS`, each changed a little at random. 55 % of all backgrounds have one
    plain colour. 25 % are a gradient from one colour to a lighter or darker shade of the same colour. 20 %
    are a gradient between two of the colours.
    """
    name = rng.choice(list(COLOURS))
    top, kind = _jittered(name, rng), rng.random()
    if kind < 0.55:
        return Background((name,), top, top, 0.0)
    if kind < 0.8:
        other, amount = rng.choice((0.0, 1.0)), rng.uniform(0.3, 0.6)
        bottom = tuple(c + (other - c) * amount for c in top)
        return Background((name, "gradient"), top, bottom, rng.uniform(-0.6, 0.6))
    second = rng.choice([colour for colour in COLOURS if colour != name])
    return Background((name, "and", second), top, _jittered(second, rng), rng.uniform(-0.3, 0.3))


def _jittered(name: str, rng: random.Random) -> tuple[float, ...]:
    return tuple(min(255, max(0, c + rng.randint(-6, 6))) / 255 for c in COLOURS[name])


def prompt_words(item: Item, background: Background | None, rng: random.Random) -> list[str]:
    """The words of a random prompt for an image: style, label or tags, and background.

    Style, background and words of the label are omitted at random.
    """
    words = subject_words(item, rng)
    if rng.random() < 0.85:
        words = [item.style, *words]
    if background is not None and rng.random() < 0.9:
        words = [*words[: MAX_WORDS - 5], "on", *background.words]
    return words[:MAX_WORDS]


def full_prompt(item: Item, background: str) -> str:
    """The prompt of an image with style, complete label and background, for measuring quality."""
    return f"{item.style} {' '.join(split_words(item.label))} on {background}"


def subject_words(item: Item, rng: random.Random) -> list[str]:
    """Words of a random prompt that name what an image shows: its label, part of it, or tags."""
    label, kind = split_words(item.label), rng.random()
    tags = [word for tag in item.tags for word in split_words(tag) if word not in label]
    rng.shuffle(tags)
    if kind < 0.6 or (kind < 0.8 and len(label) == 1) or not tags:
        return label
    if kind < 0.8:
        label.pop(rng.randrange(len(label)))
        return label
    if kind < 0.95:
        return label + tags[: rng.randint(1, 3)]
    return tags[: rng.randint(1, 3)]


class Vocabulary:
    """Gives each word that occurs in prompts a number, from 1.

    The number of a word is the row of its vector in `table`. Row 0 of the table is zero, for padding.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def encode(self, words: list[str]) -> list[int]:
        """The numbers of the first 16 words, padded with zeros to 16 entries."""
        row = [self.numbers.setdefault(word, len(self.numbers) + 1) for word in words[:MAX_WORDS]]
        return row + [0] * (MAX_WORDS - len(row))

    def table(self) -> Tensor:
        """The vectors of all words by number, (1 + number of words, 64)."""
        return torch.stack([torch.zeros(WORD_DIM), *(word_vector(word) for word in self.numbers)])


def embed_numbers(table: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Encode prompts given as word numbers, (b, 16); the numbers are rows of `table`.

    Returns what `demo.prompt.encode_prompt` returns for the words: context (b, 16, 64) and pooled vector
    (b, 64).
    """
    context = table[numbers]
    count = (numbers > 0).sum(dim=1, keepdim=True).clamp(min=1)
    return context, context.sum(dim=1) / count.sqrt()


def gradient_canvas(backgrounds: list[Background], size: int, device: torch.device) -> Tensor:
    """Draw backgrounds as RGB images (b, 3, size, size) in 0..1."""
    top = torch.tensor([b.top for b in backgrounds], device=device)[:, :, None, None]
    bottom = torch.tensor([b.bottom for b in backgrounds], device=device)[:, :, None, None]
    slope = torch.tensor([b.angle for b in backgrounds], device=device)[:, None, None, None]
    axis = torch.linspace(-0.5, 0.5, size, device=device)
    ramp = (axis[:, None] + slope * axis[None, :]) / (1 + slope.abs()) + 0.5  # (b, 1, size, size)
    return top + (bottom - top) * ramp


def compose(pictures: Tensor, canvas: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Draw premultiplied uint8 images (b, h, w, 4) on canvases (b, 3, s, s).

    Each side of an image is scaled to `scale` (b,) times the side of the canvas. Then the image is moved to
    the left by `shift[:, 0]` and up by `shift[:, 1]`; the unit is half a side of the scaled image.
    """
    layers = pictures.permute(0, 3, 1, 2).float() / 255
    size = canvas.shape[-1]
    if layers.shape[-1] != size:
        layers = F.interpolate(layers, size=(size, size), mode="area")
    theta = torch.zeros(len(layers), 2, 3, device=layers.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(layers.shape), align_corners=False)
    layers = F.grid_sample(layers, grid, align_corners=False)
    return (layers[:, :3] + canvas * (1 - layers[:, 3:])).clamp(0, 1)


def random_places(count: int, rng: random.Random, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random scales (count,) and shifts (count, 2) of images on their backgrounds, as `compose` takes them.

    The scales are 0.80 to 0.95.
    """
    scale = torch.tensor([rng.uniform(0.80, 0.95) for _ in range(count)], device=device)
    shift = torch.tensor([[rng.uniform(-0.04, 0.04) for _ in "xy"] for _ in range(count)], device=device)
    return scale, shift
