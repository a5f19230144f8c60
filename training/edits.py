"""Pairs of images for an editing model: a reference image, and the image that a prompt asks for.

The object has the same place and scale in both images. An edit changes the background, or the style of the
object, or both, so that often a large part of the image stays as it is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..demo.prompt import MAX_WORDS
from .collect import Item
from .data import Background, compose, gradient_canvas, random_background, random_places, subject_words

BACKGROUND, STYLE, BOTH = "background", "style", "both"
SHARES = {BACKGROUND: 0.4, STYLE: 0.35, BOTH: 0.25}
"""Shares of the kinds of edits among the edits of objects that are drawn in several styles."""

SHORT_SHARE = 0.5
"""Share of the prompts that name only what changes ("on blue"); the others describe the whole image."""


@dataclass(frozen=True)
class Edit:
    """A pair of images, and what a prompt may say about it.

    Attributes:
        kind: what changes: BACKGROUND, STYLE or BOTH.
        source, target: the rows of the objects of the reference image and of the wanted image.
        before, after: the backgrounds of these two images.
        item: the item of the target.
    """

    kind: str
    source: int
    target: int
    before: Background
    after: Background
    item: Item


def random_edits(
    items: Sequence[Item], targets: Sequence[int], sources: Collection[int], rng: random.Random
) -> list[Edit]:
    """A random edit for each of the rows in `targets`.

    The reference image has the same object, in one of the styles that it has in the rows `sources`. If it has
    no other style there, only the background changes.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row in sorted(sources):
        rows[items[row].hexcode].append(row)
    return [
        _random_edit(items, target, [row for row in rows[items[target].hexcode] if row != target], rng)
        for target in targets
    ]


def _random_edit(items: Sequence[Item], target: int, others: list[int], rng: random.Random) -> Edit:
    kind = rng.choices(tuple(SHARES), tuple(SHARES.values()))[0] if others else BACKGROUND
    source = target if kind == BACKGROUND else rng.choice(others)
    before = random_background(rng)
    after = before if kind == STYLE else random_background(rng)
    while kind != STYLE and after.words == before.words:
        after = random_background(rng)
    return Edit(kind, source, target, before, after, items[target])


def edit_words(edit: Edit, rng: random.Random) -> list[str]:
    """The words of a random prompt: the whole image with its style and background, or only what changes."""
    scene = ["on", *edit.after.words]
    if rng.random() >= SHORT_SHARE:
        return [edit.item.style, *subject_words(edit.item, rng)[: MAX_WORDS - 1 - len(scene)], *scene]
    return {BACKGROUND: scene, STYLE: [edit.item.style], BOTH: [edit.item.style, *scene]}[edit.kind]


def images_of(
    pictures: Tensor, edits: Sequence[Edit], size: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """The reference images and the wanted images of edits, each (b, 3, size, size) in 0..1.

    Args:
        pictures: all images, premultiplied RGBA (n, h, w, 4), to whose rows the edits refer.
        edits: the edits.
        size: width and height of the images in pixels.
        rng: decides where the objects are.
    """
    device = pictures.device
    places = random_places(len(edits), rng, device)
    sources = torch.tensor([edit.source for edit in edits], device=device)
    targets = torch.tensor([edit.target for edit in edits], device=device)
    before = gradient_canvas([edit.before for edit in edits], size, device)
    after = gradient_canvas([edit.after for edit in edits], size, device)
    return compose(pictures[sources], before, *places), compose(pictures[targets], after, *places)
