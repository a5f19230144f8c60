"""Reduction of FLOPs by a cell, relative to a dense run with the default number of steps."""

from __future__ import annotations

from collections.abc import Sequence

from ...ras_core.models.cost import CostProfile

DEFAULT_STEPS = 28


def _mmdit_profile(width: int, blocks: int, patch_width: int) -> CostProfile:
    """MMDiT without a second attention; the last block computes only keys and values of the text rows."""
    block = 12 * width**2  # qkv 3, projection 1, mlp 8
    return CostProfile(
        image_weights=blocks * block,
        text_weights=(blocks - 1) * block + 3 * width**2,
        joint_width=blocks * width,
        final_weights=width * patch_width,
    )


SD3_MEDIUM = _mmdit_profile(width=1536, blocks=24, patch_width=64)
SD3_TOKENS = 64 * 64
"""A 1024-pixel image."""
SD3_TEXT = 333
"""Text rows with the full T5 context; with ComfyUI's 154 rows for short prompts RAS saves 1 to 3 % more."""


def cost_reduction(
    profile: CostProfile,
    n_tokens: int,
    n_text: int,
    shares: Sequence[float],
    default_steps: int,
    work: Sequence[float] = (),
) -> float:
    """Cost of a dense run of `default_steps`, divided by that of evaluations with these active-token shares.

    Evaluations that a cache skipped are not in `shares`. `work` is the part of the blocks that each of them
    ran; without it they ran all.
    """
    work = work or [1.0] * len(shares)
    dense = default_steps * profile.step_flops(n_tokens, n_tokens, n_text)
    spent = sum(
        part * profile.step_flops(n_tokens, round(share * n_tokens), n_text)
        for share, part in zip(shares, work, strict=True)
    )
    return dense / spent


def sd3_cost_reduction(
    shares: Sequence[float], default_steps: int = DEFAULT_STEPS, work: Sequence[float] = ()
) -> float:
    """The same at the shape of SD3-medium at 1024 pixels, where the saving matters."""
    return cost_reduction(SD3_MEDIUM, SD3_TOKENS, SD3_TEXT, shares, default_steps, work)
