"""Cost reduction of a cell: FLOPs of a dense run with the default number of steps / FLOPs of the cell."""

from __future__ import annotations

from collections.abc import Sequence

from ...ras_core.models.cost import CostProfile

DEFAULT_STEPS = 28


def _mmdit_profile(width: int, blocks: int, patch_width: int) -> CostProfile:
    """Cost profile of an MMDiT that has only joint attention of image and text, as SD3-medium has.

    The last block of an MMDiT computes only keys and values for the text rows.
    """
    block = 12 * width**2  # in units of width**2: qkv 3, output projection 1, MLP 8
    return CostProfile(
        image_weights=blocks * block,
        text_weights=(blocks - 1) * block + 3 * width**2,
        joint_width=blocks * width,
        final_weights=width * patch_width,
    )


SD3_MEDIUM = _mmdit_profile(width=1536, blocks=24, patch_width=64)
SD3_TOKENS = 64 * 64
"""Image tokens of a 1024 x 1024 image."""
SD3_TEXT = 333
"""Text rows of a prompt with the full T5 context.

ComfyUI uses 154 text rows for short prompts, and with those the cost reduction of RAS is 1 to 3 % larger.
"""


def cost_reduction(
    profile: CostProfile,
    n_tokens: int,
    n_text: int,
    shares: Sequence[float],
    default_steps: int,
    work: Sequence[float] = (),
) -> float:
    """FLOPs of a dense run of `default_steps` steps, divided by the FLOPs of the evaluations in `shares`.

    `shares` has the share of active tokens of each evaluation. Evaluations that LazyCache, EasyCache or a
    whole-step forecast skipped are not in the list. `work` has, for each of these evaluations, the part of
    the network's blocks that ran; if `work` is empty, all blocks ran in each of them.
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
    """The cost reduction for a network of SD3-medium's shape at 1024 x 1024 pixels.

    Runs of this size take so long that users want them to be faster. The networks that the harness measures
    may be much smaller.
    """
    return cost_reduction(SD3_MEDIUM, SD3_TOKENS, SD3_TEXT, shares, default_steps, work)
