"""ComfyUI's PyTorch attention, for K/V heads that are not repeated."""

from __future__ import annotations

import inspect

import comfy.ldm.modules.attention
import comfy.ops

from ..run.grouped_attention import GroupedAttention


def grouped_attention() -> GroupedAttention | None:
    """ComfyUI's PyTorch attention for grouped K/V heads; None where it cannot be called that way."""
    plain = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)  # what wrap_attn hands on
    return GroupedAttention.of(plain, comfy.ops.scaled_dot_product_attention)
