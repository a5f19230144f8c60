"""Held-out edits to measure an editing model with: reference images, prompts and wanted images.

This module runs no model. The artwork comes from a folder that `training` has rendered (`pictures.npy`,
`items.json`), because the reference image of an edit is often the same emoji in a style of the training set.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...ras_core.errors import RASError, path_end
from ...training.collect import Item
from ...training.data import is_held_out
from ...training.edits import Edit, edit_words, images_of, random_edits
from .options import digest
from .prompts import Prompt

PICTURES, ITEMS = "pictures.npy", "items.json"
PART = 16
"""Images that are drawn at once."""


@dataclass(frozen=True)
class EditPairs:
    """Edits with their images.

    Attributes:
        edits: what changes in each pair.
        prompts: the prompt of each edit.
        before, wanted: the reference images and the wanted images, (n, 3, size, size) uint8.
    """

    edits: tuple[Edit, ...]
    prompts: tuple[Prompt, ...]
    before: Tensor
    wanted: Tensor

    @property
    def digest(self) -> str:
        """A hash of the edits, their prompts and their size."""
        return digest([[repr(edit) for edit in self.edits], self.texts, self.before.shape[-1]])

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]

    @property
    def kinds(self) -> dict[str, int]:
        """Number of pairs of each kind of edit."""
        return dict(Counter(edit.kind for edit in self.edits))


def read_pairs(folder: Path, count: int, size: int, calibration: int = 8) -> tuple[EditPairs, EditPairs]:
    """The first `count` held-out edits of a folder of artwork, and the last `calibration` of the others.

    The order of the edits, and what changes in each, are derived from checksums, so that they look random
    and do not depend on `count`.

    Raises:
        RASError: the folder has no such files, or too few held-out images.
    """
    try:
        items = [Item(**entry) for entry in json.loads((folder / ITEMS).read_text(encoding="utf-8"))]
        pictures = np.load(folder / PICTURES, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise RASError(
            f"no artwork in {path_end(folder)} ({error}).",
            "a work folder of `python -m training train`, with pictures.npy and items.json.",
            "name it with --artwork.",
        ) from error
    rows = [
        row for row, item in enumerate(items) if item.group >= 0 and is_held_out(item.hexcode, item.style)
    ]
    rows.sort(key=lambda row: digest(["order", items[row].hexcode, items[row].style]))
    if len(rows) <= count:
        raise RASError(
            f"{len(rows)} held-out emoji in {path_end(folder)}, but --count {count}.",
            "more held-out emoji than pairs, because some are needed for the calibration.",
            "lower --count, or render the whole archive.",
        )
    others = rows[count:][-calibration:]
    return _pairs(pictures, items, rows[:count], size), _pairs(pictures, items, others, size)


def _pairs(pictures: np.ndarray, items: Sequence[Item], rows: Sequence[int], size: int) -> EditPairs:
    edits, prompts = [], []
    for row in rows:
        rng = random.Random(digest(["edit", items[row].hexcode, items[row].style]))
        [edit] = random_edits(items, [row], range(len(items)), rng)
        edits.append(edit)
        words = " ".join(edit_words(edit, rng))
        prompts.append(Prompt(words, edit.item.style, edit.item.hexcode, " ".join(edit.after.words)))
    drawn = [_drawn(pictures, edits[first : first + PART], size) for first in range(0, len(edits), PART)]
    before, wanted = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return EditPairs(tuple(edits), tuple(prompts), before, wanted)


def _drawn(pictures: np.ndarray, edits: Sequence[Edit], size: int) -> tuple[Tensor, Tensor]:
    """Reference images and wanted images of a few edits, rounded to 8 bits as in image files."""
    used = sorted({row for edit in edits for row in (edit.source, edit.target)})
    place = {row: number for number, row in enumerate(used)}
    own = [replace(edit, source=place[edit.source], target=place[edit.target]) for edit in edits]
    rng = random.Random(digest([repr(edit) for edit in edits]))
    layers = torch.from_numpy(np.stack([pictures[row] for row in used]))
    before, wanted = images_of(layers, own, size, rng)
    return before.mul(255).round().byte(), wanted.mul(255).round().byte()
