"""Plots the results of a calibration. Each point is the best plan of one speed: how close the plan's result
is to a fine reference (closeness, in dB), plotted against the plan's speed-up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..method.plan import Plan
from ..method.plan_set import PlanSet
from .drawing import BACKGROUND, FAINT, TEXT, font
from .masks import ACTIVE, DENSE

WIDTH, HEIGHT, MARGIN = 960, 640, 72
GRID = (52, 56, 66)
Point = tuple[float, float]


def front_image(plans: PlanSet) -> np.ndarray:
    """A plot of three curves with a point for each speed. On the first curve, all steps are dense, and the
    grid (noise levels) is that of the `simple` schedule. On the second, all steps are dense, and the grid is
    the best one that differs from the `simple` schedule. The third shows the plans in `PlanSet.chosen`.

    Args:
        plans: the plans of a calibration. Plans without a measured closeness are not drawn. If a speed has
            plans for several samplers, the plan with the highest closeness is drawn.

    Returns:
        (1, height, width, 3) float32 in [0, 1].
    """
    plain = [plan for plan in plans.plans if plan.is_plain]
    fronts = [
        ("simple schedule, all dense", FAINT, front([plan for plan in plain if plan.has_even_grid])),
        ("best other grid, all dense", DENSE, front([plan for plan in plain if not plan.has_even_grid])),
        ("chosen plan", ACTIVE, front(plans.chosen())),
    ]
    canvas = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text(
        (MARGIN, 16), "closeness to a fine reference (dB) over speed-up (FLOPs)", fill=TEXT, font=font(18)
    )
    draw.text((MARGIN, 42), plans.note, fill=FAINT, font=font(14))
    points = [point for _, _, found in fronts for point in found]
    if points:
        axes = Axes(points)
        axes.draw(draw)
        for _, colour, found in fronts:
            _draw_front(draw, axes, found, colour)
    _draw_legend(draw, [(label, colour) for label, colour, _ in fronts])
    return np.asarray(canvas, dtype=np.float32)[None] / 255.0


def front(plans: Sequence[Plan]) -> list[Point]:
    """(speed-up, closeness in dB) of each speed's plan with the highest closeness, ordered by speed-up."""
    best: dict[str, Plan] = {}
    for plan in plans:
        known = best.get(plan.speed)
        if plan.closeness is not None and (known is None or plan.closeness > known.closeness):
            best[plan.speed] = plan
    return sorted((plan.speedup, plan.closeness) for plan in best.values())


class Axes:
    """The axes of the plot: map (speed-up, closeness in dB) to pixels, with a margin around all points."""

    def __init__(self, points: Sequence[Point]):
        gains, decibels = zip(*points, strict=True)
        self._x = (min(gains) - 0.2, max(gains) + 0.2)
        self._y = (math.floor(min(decibels)) - 1, math.ceil(max(decibels)) + 1)

    def at(self, point: Point) -> Point:
        x = (point[0] - self._x[0]) / (self._x[1] - self._x[0])
        y = (point[1] - self._y[0]) / (self._y[1] - self._y[0])
        return MARGIN + x * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y * (HEIGHT - 2.2 * MARGIN)

    def draw(self, draw: ImageDraw.ImageDraw) -> None:
        step = max((self._y[1] - self._y[0]) // 6, 1)
        for decibel in range(self._y[0], self._y[1] + 1, step):
            _, y = self.at((self._x[0], decibel))
            draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=GRID)
            draw.text((MARGIN - 8, y), f"{decibel}", fill=FAINT, font=font(14), anchor="rm")
        for half in range(math.ceil(2 * self._x[0]), math.floor(2 * self._x[1]) + 1):
            x, y = self.at((half / 2, self._y[0]))
            draw.text((x, y + 8), f"{half / 2:g}x", fill=FAINT, font=font(14), anchor="ma")


def _draw_front(draw: ImageDraw.ImageDraw, axes: Axes, points: Sequence[Point], colour: tuple) -> None:
    places = [axes.at(point) for point in points]
    if len(places) > 1:
        draw.line(places, fill=colour, width=2)
    for x, y in places:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def _draw_legend(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, tuple]]) -> None:
    x, y = MARGIN, HEIGHT - 28
    for label, colour in entries:
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=colour)
        draw.text((x + 18, y), label, fill=TEXT, font=font(14))
        x += 46 + round(draw.textlength(label, font=font(14)))
