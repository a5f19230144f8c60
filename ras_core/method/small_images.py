"""Decides whether an image is so small that regional steps lose more than they gain."""

from __future__ import annotations

LEAST_TOKENS = 900
"""Least number of tokens of an image in which a plan that was not measured at its size has regional steps.

With 1024 tokens (512 px), regional steps gain 0.6 to 2.1 dB on the demo models over dense steps of the same
cost. With 576 and 256 tokens, they lose up to 2.5 dB, or are even: fewer tokens leave fewer of them
unimportant (bench/results/2026-11-27-h100/small)."""

SMALL_IMAGE_PLAN = " (small image: no step is regional)"
"""How the text of a plan says that its steps are dense because the image is small."""


def is_small(n_tokens: int) -> bool:
    """Whether an image of this many tokens is too small for regional steps."""
    return n_tokens < LEAST_TOKENS
