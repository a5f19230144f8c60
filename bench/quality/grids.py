"""Image strips for visual comparison.

A strip shows the first images of one cell in a row. An image grid shows the strips of several cells, one
below the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

STRIP = 8
SIDE = 192
LABEL = 16


def save_strip(path: Path, pictures: Tensor) -> None:
    """Save images (n, 3, H, W) in [0, 1] as one image file with a row of n thumbnails."""
    small = F.interpolate(pictures.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    row = (small.clamp(0, 1) * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2)  # (SIDE, n * SIDE, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(row.cpu().numpy()).save(path)


def stack_strips(strips: Sequence[tuple[str, Path]], out: Path) -> bool:
    """Stack the strips of these (label, file) pairs and save them as one image.

    Strips whose file does not exist are left out. Returns False, and saves nothing, if none of the files
    exists.
    """
    present = [(label, np.asarray(Image.open(path))) for label, path in strips if path.is_file()]
    if not present:
        return False
    width = max(strip.shape[1] for _, strip in present)
    sheet = Image.new("RGB", (width, sum(strip.shape[0] + LABEL for _, strip in present)), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for label, strip in present:
        draw.text((4, y + 2), label, fill="black")
        sheet.paste(Image.fromarray(strip), (0, y + LABEL))
        y += strip.shape[0] + LABEL
    sheet.save(out)
    return True
