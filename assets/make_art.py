"""Draw the icon and the banner for the ComfyUI registry. Needs Pillow.

Both show a grid of tokens in two colours: `ACTIVE` for computed tokens, `CACHED` for tokens from the cache.

python assets/make_art.py
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SCALE = 4  # the icon is drawn this many times larger, then scaled down, for smooth corners

BACKGROUND = (22, 24, 29)
CACHED = (52, 56, 66)
ACTIVE = (230, 159, 0)  # #E69F00
TEXT = (236, 238, 242)
FAINT = (160, 166, 178)


def is_lit(row: float, column: float, rows: int) -> bool:
    """Whether a token is drawn as computed.

    The computed tokens form a ring around the grid's centre, and a dot in the middle of the ring.
    """
    middle = (rows - 1) / 2
    distance = math.hypot(row - middle, column - middle) / middle
    return 0.62 < distance < 1.0 or distance < 0.36


def draw_grid(draw: ImageDraw.ImageDraw, left: int, top: int, side: int, rows: int, columns: int) -> None:
    """Draw a grid of square cells, one per token, each `side` pixels wide.

    The ring of computed tokens is in the leftmost `rows` columns, which form a square.
    """
    gap = round(side * 0.14)
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * side, top + row * side
            box = (x + gap, y + gap, x + side - gap, y + side - gap)
            lit = is_lit(row, column, rows)
            draw.rounded_rectangle(box, radius=side * 0.16, fill=ACTIVE if lit else CACHED)


def icon() -> Image.Image:
    """The icon, 400 x 400 pixels."""
    size = 400 * SCALE
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, size - 1, size - 1), radius=size * 0.16, fill=BACKGROUND)
    margin = round(size * 0.1)
    side = (size - 2 * margin) // 9
    draw_grid(draw, (size - 9 * side) // 2, (size - 9 * side) // 2, side, rows=9, columns=9)
    return image.resize((400, 400), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The banner, 1470 x 630 pixels (aspect ratio 21:9)."""
    width, height = 1470 * 2, 630 * 2
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    side = (height - 200) // 9
    draw_grid(draw, 110, (height - 9 * side) // 2, side, rows=9, columns=9)
    left = 110 + 9 * side + 110
    draw.text((left, 400), "Multirate RAS", font=ImageFont.load_default(200), fill=TEXT)
    lines = ("Region-adaptive sampling", "for diffusion transformers in ComfyUI")
    for i, line in enumerate(lines):
        draw.text((left, 680 + 100 * i), line, font=ImageFont.load_default(76), fill=FAINT)
    return image.resize((1470, 630), Image.Resampling.LANCZOS)


def main() -> None:
    icon().quantize(64).save(HERE / "icon.png", optimize=True)
    banner().quantize(64, dither=Image.Dither.NONE).save(HERE / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
