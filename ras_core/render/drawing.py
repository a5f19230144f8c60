"""Colours, fonts and scaling shared by the images of this package."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFont

BACKGROUND = (24, 26, 31)
TEXT = (232, 234, 240)
FAINT = (110, 116, 130)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (H, W, 3) -> (height, width, 3), uint8. Enlarged images keep sharp pixel edges."""
    enlarges = image.shape[0] < height
    filter_ = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((width, height), filter_))


def as_uint8(image: np.ndarray) -> np.ndarray:
    """(H, W, 3 or more) float in [0, 1] -> (H, W, 3) uint8; what is no number becomes black."""
    return (np.nan_to_num(image[..., :3]).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's built-in font."""
    try:
        return ImageFont.load_default(size)
    except TypeError:  # before version 10.1, Pillow's built-in font has one size only
        return ImageFont.load_default()
