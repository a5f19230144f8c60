"""Draws an image with a text message, for a node that has nothing else to show."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw

from ..run.trace import Trace
from .drawing import BACKGROUND, FAINT, TEXT, font

NO_RAS = "No RAS in this run"
WIDTH, HEIGHT, MARGIN = 1080, 720, 60
LETTERS = 72  # of a line
LINE = 34


def without_ras(trace: Trace) -> np.ndarray:
    """An image that says that a run had no RAS, and the reasons from the trace's notes:
    (1, HEIGHT, WIDTH, 3) float32 in [0, 1].
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, HEIGHT // 3), NO_RAS, fill=TEXT, font=font(48))
    lines = [line for note in trace.notes for line in textwrap.wrap(sentence(note), LETTERS)]
    for i, line in enumerate(lines):
        draw.text((MARGIN, HEIGHT // 3 + 80 + i * LINE), line, fill=FAINT, font=font(26))
    return np.asarray(canvas, dtype=np.float32)[None] / 255.0


def sentence(note: str) -> str:
    """A note of a trace as a complete sentence."""
    return f"{note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"
