"""Text for the demo models, without a text encoder.

Every word is a fixed random vector from a generator that its CRC-32 seeds. This needs no weights and accepts
every prompt; the models only learnt the words of their training prompts.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import torch
from torch import Tensor

MAX_WORDS = 16
WORD_DIM = 64
WORD_NORM = 4.0


def split_words(text: str) -> list[str]:
    """Lower-case words of `text` in order; they are separated by anything but letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


@lru_cache(maxsize=8192)
def word_vector(word: str) -> Tensor:
    """The vector of one word: shape (64,), length 4. Treat it as read-only."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(word.encode("utf-8")))
    vector = torch.randn(WORD_DIM, generator=generator, dtype=torch.float32)
    return vector * (WORD_NORM / vector.norm())


def encode_prompt(text: str) -> tuple[Tensor, Tensor]:
    """Context (1, 16, 64) and pooled vector (1, 64) of a prompt, float32.

    The first 16 words fill the context, zero rows pad it, later words are dropped. The pooled vector is the
    sum of the words over the square root of their number. The empty text is all zeros.
    """
    context = torch.zeros(1, MAX_WORDS, WORD_DIM)
    words = split_words(text)[:MAX_WORDS]
    for row, word in enumerate(words):
        context[0, row] = word_vector(word)
    pooled = context.sum(dim=1) / max(1, len(words)) ** 0.5  # (1, 64)
    return context, pooled
