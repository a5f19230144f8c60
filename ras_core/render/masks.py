"""The summary of a run as an image, and what `frames` shares with it.

The colours are from the Okabe-Ito set and from cividis, which are distinct for any kind of colour vision.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..method.schedule import StepKind
from ..run.trace import Evaluation, Trace
from .drawing import BACKGROUND, FAINT, TEXT, as_uint8, fit, font
from .notice import without_ras

MAX_IMAGES = 4

ACTIVE = (230, 159, 0)
DENSE = (86, 180, 233)
RESET = (204, 121, 167)
SCORE = (240, 228, 66)
CIVIDIS = np.array(
    [(0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56)],
    dtype=np.float32,
)


def summary_image(trace: Trace, images: np.ndarray | None = None) -> np.ndarray:
    """An image with a map of how often each region was computed, and a timeline of the steps:
    (1, height, width, 3) float32 in [0, 1]. Without a step, the image says that there was no RAS, and why.
    """
    if not trace.steps:
        return without_ras(trace)
    height, width, margin = 720, 1080, 28
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, 18), _headline(trace), fill=TEXT, font=font(20))
    draw.text((margin, 46), _subline(trace), fill=FAINT, font=font(15))
    _draw_maps(canvas, draw, trace, images, (margin, 78, width - margin, 408))
    _draw_timeline(draw, trace, (margin + 52, 452, width - margin - 52, height - 84))
    _draw_legend(draw, (margin, height - 36))
    return np.asarray(canvas, dtype=np.float32)[None] / 255.0


def shown_planes(tokens: np.ndarray) -> np.ndarray:
    """(b, h, w) or (b, t, h, w) -> (panels, h, w): the token planes that are shown, at most `MAX_IMAGES`. A
    token plane is the (h, w) tokens of one image, or of one latent frame of a video. The planes of the first
    images of the batch are shown; for videos, those of equally spaced latent frames of the first video.
    """
    frames = tokens.reshape(len(tokens), -1, *tokens.shape[-2:])
    if frames.shape[1] == 1:
        return frames[:MAX_IMAGES, 0]
    return frames[0, spread(frames.shape[1], min(frames.shape[1], MAX_IMAGES))]


def spread(length: int, count: int) -> np.ndarray:
    """`count` equally spaced indices, from 0 to `length` - 1."""
    return np.linspace(0, length - 1, count).round().astype(int)


def kind_of(step: Evaluation) -> str:
    if step.kind is StepKind.REGIONAL:
        return "regional"
    return "error reset (dense)" if step.is_reset else "dense"


def colour_of(step: Evaluation) -> tuple[int, int, int]:
    if step.kind is StepKind.REGIONAL:
        return ACTIVE
    return RESET if step.is_reset else DENSE


def _headline(trace: Trace) -> str:
    return trace.counts()


def _subline(trace: Trace) -> str:
    gains = trace.speedups() if trace.is_accelerated else ""
    text = f"sampling took {trace.seconds:.1f} s; K/V cache {trace.kv_bytes / 2**20:.0f} MiB"
    return "; ".join(filter(None, [gains, text, *trace.notes, trace.shortfall, *trace.remarks]))


def _draw_maps(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, trace: Trace, images: np.ndarray | None, box: tuple
) -> None:
    """Draw the image, if given, and to its right a map of how often each region was computed."""
    left, top, right, bottom = box
    share = np.mean([step.active for step in trace.steps], axis=0)  # (b, *shape)
    tiles = [] if images is None else [as_uint8(images[0])]
    span = (float(share.min()), max(float(share.max()), float(share.min()) + 0.01))
    tiles += [_heat(plane, span) for plane in shown_planes(share)]
    x = left
    h, w = trace.grid.shape[-2:]
    for tile in tiles:
        width = round((bottom - top) * w / h)
        width = max(min(width, (right - left - 90) // len(tiles) - 12), 1)
        canvas.paste(Image.fromarray(fit(tile, width, bottom - top)), (x, top))
        x += width + 12
    _draw_colour_bar(canvas, draw, (min(x + 4, right - 120), top, bottom), span)


def _draw_colour_bar(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, extent: tuple[int, int, int], span: tuple[float, float]
) -> None:
    """Draw the colour legend of the map. The colours range from the smallest to the largest share of steps
    that computed a region in this run; a dense step computes every region.
    """
    x, top, bottom = extent
    ramp = _heat(np.linspace(1, 0, bottom - top)[:, None])
    canvas.paste(Image.fromarray(fit(ramp, 14, bottom - top)), (x, top))
    for fraction in (1.0, 0.5, 0.0):
        label = f"{span[0] + fraction * (span[1] - span[0]):.0%}"
        draw.text((x + 20, top + (1 - fraction) * (bottom - top - 16)), label, fill=TEXT, font=font(13))
    draw.text((x, bottom + 6), "of steps computed", fill=FAINT, font=font(13))


def _draw_timeline(draw: ImageDraw.ImageDraw, trace: Trace, box: tuple[int, int, int, int]) -> None:
    """Draw a bar per step, as high as the step's share of active tokens. Also draw a line, with its axis on
    the right, for the mean of the tokens' selection scores after each step.
    """
    left, top, right, bottom = box
    steps = trace.steps
    slot = (right - left) / max(len(steps), 1)
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        draw.line((left, y, right, y), fill=(52, 56, 66))
        draw.text((left - 8, y), f"{share:.0%}", fill=FAINT, font=font(13), anchor="rm")
    for i, step in enumerate(steps):
        x = left + i * slot
        y = bottom - step.active_share * (bottom - top)
        draw.rectangle((x + 1, y, x + max(slot - 2, 2), bottom), fill=colour_of(step))
        if i % max(len(steps) // 14, 1) == 0:
            draw.text((x + slot / 2, bottom + 6), str(step.step + 1), fill=FAINT, font=font(13), anchor="ma")
    _draw_scores(draw, steps, box, slot)
    draw.text((left - 52, top - 30), "tokens processed, step by step", fill=TEXT, font=font(15))


def _draw_scores(draw: ImageDraw.ImageDraw, steps: tuple[Evaluation, ...], box: tuple, slot: float) -> None:
    left, top, right, bottom = box
    means = [(i, float(step.score.mean())) for i, step in enumerate(steps) if step.score is not None]
    if len(means) < 2:
        return
    peak = max(value for _, value in means) or 1.0
    points = [(left + (i + 0.5) * slot, bottom - value / peak * (bottom - top)) for i, value in means]
    draw.line(points, fill=BACKGROUND, width=5)
    draw.line(points, fill=SCORE, width=2)
    draw.text((right + 8, top), f"{peak:.2f}", fill=SCORE, font=font(13), anchor="lm")
    draw.text((right + 8, bottom), "0", fill=SCORE, font=font(13), anchor="lm")


def _draw_legend(draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    x, y = corner
    entries = [(DENSE, "dense"), (RESET, "error reset"), (ACTIVE, "regional")]
    entries.append((SCORE, "mean region score (right axis)"))
    for colour, label in entries:
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=colour)
        draw.text((x + 18, y), label, fill=TEXT, font=font(14))
        x += 46 + round(draw.textlength(label, font=font(14)))


def _heat(share: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Map shares of steps, (h, w), to colours of cividis, (h, w, 3) uint8. `span` is the range of shares."""
    position = np.clip((share - span[0]) / (span[1] - span[0]), 0, 1) * (len(CIVIDIS) - 1)
    low = np.floor(position).astype(int).clip(max=len(CIVIDIS) - 2)
    part = (position - low)[..., None]
    return (CIVIDIS[low] * (1 - part) + CIVIDIS[low + 1] * part).astype(np.uint8)
