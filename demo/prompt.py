"""Text for the demo models, without a text encoder.

Each word is encoded as a random vector that is always the same, because the CRC-32 of the word seeds the
random generator. This needs no weights and accepts every prompt, but the models only know the words of their
training prompts.
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
    """Lower-case words of `text` in order. Any character except letters and digits separates words."""
    return re.findall(r"[^\W_]+", text.lower())


def word_vector(word: str) -> Tensor:
    """The vector of one word: shape (64,), L2 norm 4. It is cached, so treat it as read-only."""
    return _vector(zlib.crc32(word.encode("utf-8")))


@lru_cache(maxsize=8192)  # of seeds, because words can have any length
def _vector(seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    vector = torch.randn(WORD_DIM, generator=generator, dtype=torch.float32)
    return vector * (WORD_NORM / vector.norm())


def encode_prompt(text: str) -> tuple[Tensor, Tensor]:
    """Context (1, 16, 64) and pooled vector (1, 64) of a prompt, float32.

    Each row of the context is the vector of one word. Shorter prompts are padded with zero rows; words after
    the sixteenth are dropped. The pooled vector is the sum of the word vectors divided by the square root of
    their number. For an empty prompt, context and pooled vector are zero.
    """
    context = torch.zeros(1, MAX_WORDS, WORD_DIM)
    words = split_words(text)[:MAX_WORDS]
    for row, word in enumerate(words):
        context[0, row] = word_vector(word)
    pooled = context.sum(dim=1) / max(1, len(words)) ** 0.5  # (1, 64)
    return context, pooled
