"""Compares the images of runs without and with RAS: computes scores, and draws the images in one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from ..run.timing import dense_seconds, typical_seconds
from ..run.trace import Trace
from .drawing import BACKGROUND, TEXT, as_uint8, fit, font
from .notice import NO_RAS

PANEL, HIGHEST = 512, 2048
MARGIN = 20
DIFFERENCE_GAIN = 4.0
ALIKE = 1.3
"""Runs of the same FLOPs whose times differ by more than this factor were disturbed by other programs."""

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


class Run(NamedTuple):
    """A run to compare: its images, (b, H, W, 3) in [0, 1], and its trace."""

    images: np.ndarray
    trace: Trace

    @property
    def seconds(self) -> float:
        """Time of sampling, without what disturbed single steps, as in the trace's measured speed-ups."""
        return typical_seconds(self.trace.evaluations) or self.trace.seconds


def checked(ras: Run, fewer: Run) -> Run:
    """The run with RAS, marked as disturbed if the run in fewer steps, which should take as long, did not.

    Regional steps have fixed costs, which small images show: `ras` may then take longer. If its dense steps
    took as long as those of `fewer`, the computer was not busy.
    """
    expected = fewer.trace.n_steps * ras.trace.expected_gain / ras.trace.compared_steps
    ratio = fewer.seconds / (ras.seconds * expected) if ras.seconds > 0 else 1.0
    dense = [dense_seconds(run.trace.evaluations) for run in (ras, fewer)]
    is_slow_itself = ratio < 1 and all(dense) and max(dense) <= ALIKE * min(dense)
    if 1 / ALIKE <= ratio <= ALIKE or is_slow_itself:
        return ras
    return ras._replace(trace=replace(ras.trace, is_comparison_disturbed=True))


def comparison_image(dense: Run, ras: Run, fewer: Run) -> np.ndarray:
    """Put the first images of three runs, and the difference of the first two, into one wide image, with
    times and scores.

    Args:
        dense, ras: the runs without and with RAS.
        fewer: the run without RAS in fewer steps, which cost as much as those of `ras`. `dense` if there is
            no such run; it is then not shown.

    Returns:
        (1, height, width, 3) float32 in [0, 1].
    """
    first = dense.images[0]
    height, width = _panel_size(*first.shape[:2])
    panels = [
        (f"without RAS   {dense.trace.n_steps} steps   {dense.seconds:.1f} s", first),
        (f"with RAS   {ras.seconds:.1f} s", ras.images[0]),
        (f"difference x {DIFFERENCE_GAIN:.0f}", difference(first, ras.images[0])),
    ]
    if fewer is not dense:
        panels.insert(2, (f"{fewer_title(fewer.trace)}   {fewer.seconds:.1f} s", fewer.images[0]))
    canvas = Image.new("RGB", (len(panels) * (PANEL + MARGIN) + MARGIN, height + 116), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (title, image) in enumerate(panels):
        x = MARGIN + i * (PANEL + MARGIN)
        draw.text((x, 16), title, fill=TEXT, font=font(20))
        canvas.paste(Image.fromarray(fit(as_uint8(image), width, height)), (x, 52))
    line = headline(first, ras.images[0], (dense.trace, ras.trace))
    draw.text((MARGIN, height + 70), line, fill=TEXT, font=font(20))
    return np.asarray(canvas, dtype=np.float32)[None] / 255.0


def fewer_title(trace: Trace) -> str:
    """What the run without RAS in fewer steps was: "fewer steps: 14 steps on the measured grid"."""
    levels = f"on {trace.levels}" if trace.levels else "on your scheduler's grid"
    return f"fewer steps: {trace.n_steps} steps {levels}"


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Size at which an image is shown: PANEL wide, but not over HIGHEST high."""
    shown = round(PANEL * height / width)
    if shown <= HIGHEST:
        return max(shown, 1), PANEL
    return HIGHEST, max(round(HIGHEST * width / height), 1)


def headline(dense: np.ndarray, ras: np.ndarray, traces: tuple[Trace, Trace]) -> str:
    """One line of text with the speed-up of the RAS run, its PSNR and its SSIM."""
    trace = traces[1] if traces[1].dense_steps else traces[1].against(traces[0])
    return f"{_speed(trace)}, PSNR {psnr(dense, ras):.1f} dB, SSIM {ssim(dense, ras):.3f}"


def _speed(trace: Trace) -> str:
    """The speed-up to show: measured, or expected from FLOPs if the times are unreliable."""
    if not trace.steps:
        return f"{NO_RAS}: {trace.reason}"
    inpainting = " (inpainting: fewer steps, all dense)" if trace.is_inpainting else ""
    if trace.measured_gain is None or trace.is_disturbed:
        return f"about {trace.expected_gain:.2f}x faster (from FLOPs: the computer was busy){inpainting}"
    return f"{trace.measured_gain:.2f}x faster{inpainting}"
