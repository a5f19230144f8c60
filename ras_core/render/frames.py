"""Draws one frame for each step of a run. A frame shows which regions of the image the step computed."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from ..method.shares import percent
from ..run.trace import Evaluation, Trace
from .drawing import BACKGROUND, as_uint8, fit, font
from .masks import colour_of, kind_of, shown_planes, spread
from .notice import without_ras

PIXELS_PER_TOKEN, FEWEST_PIXELS = 16, 4
CAPTION = 32
MOST_PIXELS = 2**25
"""Largest number of pixels of all frames together. With three channels in float32, the format of ComfyUI's
images, this many pixels take 384 MiB."""


def mask_frames(trace: Trace, images: np.ndarray | None = None) -> np.ndarray:
    """One frame per step, with a caption. Active regions are shown in full colour, cached regions dimmed.

    Args:
        trace: a finished run.
        images: the images that are shown under the masks, (b, H, W, 3) float in [0, 1]; None for a grey
            background. For videos, these are the frames of all videos, one video after the other.

    Returns:
        (steps, height, width, 3) float32 in [0, 1]. Each frame shows up to four images of the batch in a row,
        or up to four latent frames of the first video. If all frames together would have more than
        MOST_PIXELS, each token is drawn with fewer pixels, but with at least FEWEST_PIXELS along each axis.
        If that is not enough, only some equally spaced steps are shown. For a trace without steps, there is
        one frame, which says that there was no RAS, and why.
    """
    if not trace.steps:
        return without_ras(trace)
    steps, pixels = _shown_steps(trace)
    backdrops = _backdrops(trace, images, pixels)
    panels, height, width, _ = backdrops.shape
    dark = _darkened(backdrops)
    frames = np.empty((len(steps), height + CAPTION, panels * width, 3), dtype=np.float32)
    for frame, step in zip(frames, steps, strict=True):
        _draw_frame(frame, trace, step, (backdrops, dark))
    return frames


def _shown_steps(trace: Trace) -> tuple[list[Evaluation], int]:
    """The steps that are shown, and the length of a token's side in pixels."""
    steps = list(trace.steps)
    panels, h, w = shown_planes(steps[0].active).shape
    pixels = math.isqrt(MOST_PIXELS // (len(steps) * panels * h * w))
    pixels = min(max(pixels, FEWEST_PIXELS), PIXELS_PER_TOKEN)
    most = max(MOST_PIXELS // (panels * w * pixels * (h * pixels + CAPTION)), 1)
    return [steps[i] for i in spread(len(steps), min(len(steps), most))], pixels


def _backdrops(trace: Trace, images: np.ndarray | None, pixels: int) -> np.ndarray:
    """The backgrounds under the masks, one for each plane of `shown_planes`: (panels, height, width, 3)
    uint8. Each token covers a square with sides of `pixels` pixels.
    """
    height, width = (pixels * tokens for tokens in trace.grid.shape[-2:])
    count = len(shown_planes(trace.steps[0].active))
    if images is None:
        return np.full((count, height, width, 3), 150, dtype=np.uint8)
    return np.stack([fit(as_uint8(image), width, height) for image in _shown_images(trace, images, count)])


def _shown_images(trace: Trace, images: np.ndarray, count: int) -> list[np.ndarray]:
    """The images shown under the `count` planes of `shown_planes`. For videos, `images` holds the frames of
    all videos, one video after the other.
    """
    if math.prod(trace.grid.shape[:-2]) == 1:
        return [images[min(i, len(images) - 1)] for i in range(count)]
    n_frames = max(len(images) // len(trace.steps[0].active), 1)  # of one video
    return [images[i] for i in spread(n_frames, count)]


def _darkened(backdrops: np.ndarray) -> np.ndarray:
    """Dark grey copies of the backgrounds, which are shown at cached tokens."""
    grey = backdrops.mean(axis=3, keepdims=True) * 0.28 + np.array(BACKGROUND) * 0.4
    return grey.astype(np.uint8)


def _draw_frame(
    frame: np.ndarray, trace: Trace, step: Evaluation, backdrops: tuple[np.ndarray, np.ndarray]
) -> None:
    """Draw a step into `frame`, (height + CAPTION, panels * width, 3) float32. `backdrops` are the
    backgrounds for active tokens and those for cached tokens.
    """
    planes = shown_planes(step.active)
    panels = [_panel(plane, *pair, colour_of(step)) for plane, *pair in zip(planes, *backdrops, strict=True)]
    footer = Image.new("RGB", (frame.shape[1], CAPTION), BACKGROUND)
    ImageDraw.Draw(footer).text((10, 6), _caption(trace, step), fill=colour_of(step), font=font(16))
    np.divide(np.concatenate(panels, axis=1), np.float32(255), out=frame[:-CAPTION])
    np.divide(np.asarray(footer), np.float32(255), out=frame[-CAPTION:])


def _panel(active: np.ndarray, bright: np.ndarray, dark: np.ndarray, colour: tuple) -> np.ndarray:
    """An image in which cached tokens are dark grey and active tokens are in full colour. An outline is drawn
    along the border of each active region, on the active tokens, also where the border is an edge of the
    image.
    """
    h, w = active.shape
    side = bright.shape[0] // h  # pixels of a token
    blocks = (h, side, w, side, 3)
    panel = dark.copy()
    tokens = panel.reshape(blocks).swapaxes(1, 2)  # a view: (h, w, side, side, 3)
    tokens[active] = bright.reshape(blocks).swapaxes(1, 2)[active]
    line, near = max(side // 8, 1), np.pad(active, 1)
    for there, place in (
        (near[:-2, 1:-1], np.s_[:line, :]),
        (near[2:, 1:-1], np.s_[-line:, :]),
        (near[1:-1, :-2], np.s_[:, :line]),
        (near[1:-1, 2:], np.s_[:, -line:]),
    ):
        tokens[(*np.nonzero(active & ~there), *place)] = colour
    return panel


def _caption(trace: Trace, step: Evaluation) -> str:
    return (
        f"step {step.step + 1} of {trace.n_steps}   {kind_of(step)}   "
        f"{percent(step.active_share)} of tokens   sigma {step.sigma:.3f}"
    )
