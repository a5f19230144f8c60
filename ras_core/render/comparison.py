"""Compares the images of a dense run and of a RAS run: computes scores, and draws both images in one."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from ..run.trace import Trace
from .drawing import BACKGROUND, FAINT, TEXT, as_uint8, fit, font

PANEL, HIGHEST = 512, 2048
MARGIN = 20
DIFFERENCE_GAIN = 4.0
BEST_PSNR = 100.0
"""Highest PSNR that `psnr` returns. Equal images get this PSNR instead of infinity, so that averages are
finite."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; higher is closer, equal images give 100."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return min(-10 * math.log10(error), BEST_PSNR) if error > 0 else BEST_PSNR


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (SSIM) of (H, W, 3) images in [0, 1], as the mean over pixels and channels.

    The constants and the Gaussian window (sigma 1.5, 11 pixels wide) are those of the paper that defined SSIM
    (Wang and others, 2004).
    """
    a, b = a.astype(np.float64), b.astype(np.float64)

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=(1.5, 1.5, 0), truncate=3.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute difference of two images, times four to make it more visible: float32 in [0, 1]."""
    return np.clip(np.abs(a.astype(np.float32) - b) * DIFFERENCE_GAIN, 0, 1)


def comparison_image(dense: np.ndarray, ras: np.ndarray, traces: tuple[Trace, Trace]) -> np.ndarray:
    """Put the dense image, the RAS image and their difference into one wide image, with times and scores.

    Args:
        dense, ras: (H, W, 3) in [0, 1].
        traces: traces of the dense run and of the RAS run.

    Returns:
        (1, height, width, 3) float32 in [0, 1].
    """
    height, width = _panel_size(*dense.shape[:2])
    canvas = Image.new("RGB", (3 * PANEL + 4 * MARGIN, height + 150), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    titles = [
        (f"dense   {traces[0].seconds:.1f} s", dense),
        (f"RAS   {traces[1].seconds:.1f} s", ras),
        (f"difference x {DIFFERENCE_GAIN:.0f}", difference(dense, ras)),
    ]
    for i, (title, image) in enumerate(titles):
        x = MARGIN + i * (PANEL + MARGIN)
        draw.text((x, 16), title, fill=TEXT, font=font(20))
        canvas.paste(Image.fromarray(fit(as_uint8(image), width, height)), (x, 52))
    draw.text((MARGIN, height + 70), headline(dense, ras, traces), fill=TEXT, font=font(20))
    draw.text((MARGIN, height + 104), traces[1].summary(), fill=FAINT, font=font(15))
    return np.asarray(canvas, dtype=np.float32)[None] / 255.0


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Size at which an image is shown: PANEL wide, but not over HIGHEST high."""
    shown = round(PANEL * height / width)
    if shown <= HIGHEST:
        return max(shown, 1), PANEL
    return HIGHEST, max(round(HIGHEST * width / height), 1)


def headline(dense: np.ndarray, ras: np.ndarray, traces: tuple[Trace, Trace]) -> str:
    """One line of text with the measured and the expected speed-up of the RAS run, its PSNR and its SSIM."""
    trace = traces[1] if traces[1].dense_steps else traces[1].against(traces[0])
    faster = trace.measured_speedup or float("nan")
    return (
        f"{faster:.2f}x faster (expected {trace.expected_speedup:.2f}x), "
        f"PSNR {psnr(dense, ras):.1f} dB, SSIM {ssim(dense, ras):.3f}"
    )
