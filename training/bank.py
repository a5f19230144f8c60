"""Banks of training data: encoded images with prompts, from which a training draws its batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .autoencoder import whole_pictures
from .collect import Item
from .data import Vocabulary, gradient_canvas, prompt_words, random_background
from .edits import Edit, edit_words, images_of
from .plan import Plan

EMPTY_TEXT_SHARE = 0.1


@dataclass(frozen=True)
class LatentBank:
    """Latents (n, 16, h, w) in fp16, with several prompts for each as word numbers (n, prompts, 16).

    In a bank for an editing model, each latent also has the latent of its reference image.
    """

    latents: Tensor
    numbers: Tensor
    references: Tensor | None = None

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A random batch: latents, one prompt for each as word numbers, and the reference images' latents.

        Some prompts are made empty.
        """
        chance = {"device": self.latents.device, "generator": generator}
        row = torch.randint(len(self.latents), (batch,), **chance)
        prompt = torch.randint(self.numbers.shape[1], (batch,), **chance)
        keep = torch.rand(batch, 1, **chance) >= EMPTY_TEXT_SHARE
        return self.latents[row].float(), self.numbers[row, prompt].long() * keep, *self._references_at(row)

    def rows(self, rows: slice) -> tuple[Tensor, ...]:
        """What `draw` returns, for these rows with their first prompts."""
        return self.latents[rows].float(), self.numbers[rows, 0].long(), *self._references_at(rows)

    def _references_at(self, rows: slice | Tensor) -> tuple[Tensor, ...]:
        return () if self.references is None else (self.references[rows].float(),)


@torch.no_grad()
def encode_bank(
    encoder: nn.Module, pictures: Tensor, items: list[Item], size: int, plan: Plan, vocabulary: Vocabulary
) -> LatentBank:
    """Encode several variants of every image to latents.

    Each variant has a random background, scale and shift, and random prompts of its own.
    """
    rng, device = random.Random(size), pictures.device
    latents, numbers = [], []
    for _ in range(plan.variants):
        for first in range(0, len(items), 64):
            part, names = pictures[first : first + 64], items[first : first + 64]
            backgrounds = [random_background(rng) for _ in names]
            image = whole_pictures(part, gradient_canvas(backgrounds, size, device), rng)
            latents.append(_encoded(encoder, image))
            numbers += [
                [vocabulary.encode(prompt_words(item, background, rng)) for _ in range(plan.prompts)]
                for item, background in zip(names, backgrounds, strict=True)
            ]
    packed = torch.from_numpy(np.array(numbers, dtype=np.int16)).to(device)
    return LatentBank(torch.cat(latents).contiguous(), packed)


@torch.no_grad()
def encode_edits(
    encoder: nn.Module, pictures: Tensor, edits: Sequence[Edit], size: int, plan: Plan, vocabulary: Vocabulary
) -> LatentBank:
    """Encode pairs of images to latents; each pair has random prompts of its own.

    Args:
        pictures: all images, premultiplied RGBA (n, h, w, 4), to whose rows the edits refer.
    """
    rng = random.Random(size)
    latents, references, numbers = [], [], []
    for first in range(0, len(edits), 64):
        part = edits[first : first + 64]
        before, after = images_of(pictures, part, size, rng)
        latents.append(_encoded(encoder, after))
        references.append(_encoded(encoder, before))
        numbers += [[vocabulary.encode(edit_words(edit, rng)) for _ in range(plan.prompts)] for edit in part]
    packed = torch.from_numpy(np.array(numbers, dtype=np.int16)).to(pictures.device)
    return LatentBank(torch.cat(latents).contiguous(), packed, torch.cat(references).contiguous())


def _encoded(encoder: nn.Module, images: Tensor) -> Tensor:
    """Latents of images (b, 3, h, w), in fp16."""
    device = images.device.type
    with torch.autocast(device, torch.float16, enabled=device == "cuda"):
        return encoder(images.contiguous(memory_format=torch.channels_last)).half()
