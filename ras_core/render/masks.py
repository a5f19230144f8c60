"""The summary of a run as an image, and what `frames` shares with it.

The colours are from the Okabe-Ito set and from cividis, which are distinct for any kind of colour vision.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..method.schedule import StepKind
from ..method.shares import percent
from ..run.trace import Evaluation, Trace
from .drawing import BACKGROUND, TEXT, as_uint8, fit, font
from .notice import without_ras

MAX_IMAGES = 4

LARGE, SMALL = 36, 28
"""Sizes of text. A new node shows the image at little more than a third of its size."""

BAR_WIDTH = 240  # of the colour legend with its labels

MOST_LINES = 2
"""Of the text below the headline."""

ACTIVE = (230, 159, 0)
DENSE = (86, 180, 233)
RESET = (204, 121, 167)
SCORE = (240, 228, 66)
QUIET = (160, 166, 178)
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
    draw.text((margin, 12), _headline(trace), fill=TEXT, font=font(LARGE))
    for line, text in enumerate(_lines(draw, _subline(trace), width - 2 * margin)):
        draw.text((margin, 58 + 34 * line), text, fill=QUIET, font=font(SMALL))
    _draw_maps(canvas, draw, trace, images, (margin, 136, width - margin, 384))
    _draw_timeline(draw, trace, (margin + 84, 446, width - margin - 72, height - 108))
    _draw_legend(draw, (margin, height - 46))
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
    return "dense again" if step.is_reset else "dense"


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


def _lines(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    """The text in at most MOST_LINES lines of this width; the end of a longer text is left out."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font(SMALL)) <= width:
            lines[-1] = longer
        elif len(lines) < MOST_LINES:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1].rstrip('.,;')} ..."
            break
    return lines


def _draw_maps(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, trace: Trace, images: np.ndarray | None, box: tuple
) -> None:
    """Draw the image, if given, and to its right a map of how often each region was computed."""
    left, top, right, bottom = box
    share = np.mean([step.active for step in trace.steps], axis=0)  # (b, *shape)
    tiles = [] if images is None else [as_uint8(images[0])]
    span = (float(share.min()), max(float(share.max()), float(share.min()) + 0.01))
    tiles += [_heat(plane, span) for plane in shown_planes(share)]
    x, limit = left, (right - left - BAR_WIDTH) // len(tiles) - 12
    h, w = trace.grid.shape[-2:]
    width = max(min(round((bottom - top) * w / h), limit), 1)
    height = max(min(round(width * h / w), bottom - top), 1)
    for tile in tiles:
        canvas.paste(Image.fromarray(fit(tile, width, height)), (x, top))
        x += width + 12
    _draw_colour_bar(draw, canvas, (min(x + 4, right - BAR_WIDTH), top, bottom), span)


def _draw_colour_bar(
    draw: ImageDraw.ImageDraw, canvas: Image.Image, extent: tuple[int, int, int], span: tuple[float, float]
) -> None:
    """Draw the colour legend of the map. The colours range from the smallest to the largest share of steps
    that computed a region in this run; a dense step computes every region.
    """
    x, top, bottom = extent
    ramp = _heat(np.linspace(1, 0, bottom - top)[:, None])
    canvas.paste(Image.fromarray(fit(ramp, 18, bottom - top)), (x, top))
    for fraction, anchor in ((1.0, "la"), (0.5, "lm"), (0.0, "ld")):
        label = percent(span[0] + fraction * (span[1] - span[0]))
        label += " of steps" if fraction == 1 else ""
        y = top + (1 - fraction) * (bottom - top)
        draw.text((x + 28, y), label, fill=TEXT, font=font(SMALL), anchor=anchor)


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
        draw.text((left - 8, y), percent(share).replace(" ", ""), fill=QUIET, font=font(SMALL), anchor="rm")
    for i, step in enumerate(steps):
        x = left + i * slot
        y = bottom - step.active_share * (bottom - top)
        draw.rectangle((x + 1, y, x + max(slot - 2, 2), bottom), fill=colour_of(step))
        if i % max(-(-len(steps) // 18), 1) == 0:
            text = str(step.step + 1)
            draw.text((x + slot / 2, bottom + 6), text, fill=QUIET, font=font(SMALL), anchor="ma")
    _draw_scores(draw, steps, box, slot)
    draw.text((left - 84, top - 48), "tokens processed, step by step", fill=TEXT, font=font(SMALL))


def _draw_scores(draw: ImageDraw.ImageDraw, steps: tuple[Evaluation, ...], box: tuple, slot: float) -> None:
    left, top, right, bottom = box
    means = [(i, float(step.score.mean())) for i, step in enumerate(steps) if step.score is not None]
    if len(means) < 2:
        return
    peak = max(value for _, value in means) or 1.0
    points = [(left + (i + 0.5) * slot, bottom - value / peak * (bottom - top)) for i, value in means]
    draw.line(points, fill=BACKGROUND, width=9)
    draw.line(points, fill=SCORE, width=4)
    draw.text((right + 8, top), f"{peak:.2f}", fill=SCORE, font=font(SMALL), anchor="lm")
    draw.text((right + 8, bottom), "0", fill=SCORE, font=font(SMALL), anchor="lm")


def _draw_legend(draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    x, y = corner
    entries = [(DENSE, "dense"), (RESET, "dense again"), (ACTIVE, "regional")]
    entries.append((SCORE, "mean region score (right axis)"))
    for colour, label in entries:
        draw.rectangle((x, y + 8, x + 20, y + 28), fill=colour)
        draw.text((x + 28, y), label, fill=TEXT, font=font(SMALL))
        x += 58 + round(draw.textlength(label, font=font(SMALL)))


def _heat(share: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Map shares of steps, (h, w), to colours of cividis, (h, w, 3) uint8. `span` is the range of shares."""
    position = np.clip((share - span[0]) / (span[1] - span[0]), 0, 1) * (len(CIVIDIS) - 1)
    low = np.floor(position).astype(int).clip(max=len(CIVIDIS) - 2)
    part = (position - low)[..., None]
    return (CIVIDIS[low] * (1 - part) + CIVIDIS[low + 1] * part).astype(np.uint8)
