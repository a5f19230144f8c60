"""Decides whether an image is so small that regional steps lose more than they gain."""

from __future__ import annotations

LEAST_TOKENS = 900
"""In images of fewer tokens, a plan has no regional steps, unless it was measured at the image's size.

With 1024 tokens (512 px), regional steps gain 0.6 to 2.1 dB on the demo models over dense steps of the same
cost. With 576 and 256 tokens, they lose up to 2.5 dB, or are even (bench/results/2026-11-27-h100/small). The
limit lies between."""

SMALL_IMAGE_PLAN = " (small image: no step is regional)"
"""How the text of a plan says that its steps are dense because the image is small."""


def is_small(n_tokens: int) -> bool:
    """Whether an image of this many tokens is too small for regional steps."""
    return n_tokens < LEAST_TOKENS
