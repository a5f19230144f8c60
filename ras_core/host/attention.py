"""ComfyUI's PyTorch attention, called with grouped K/V heads."""

from __future__ import annotations

import inspect

import comfy.ldm.modules.attention
import comfy.ops

from ..run.grouped_attention import GroupedAttention, OutputForm

KNOWN = {
    "mask",
    "attn_precision",
    "skip_reshape",
    "skip_output_reshape",
    "transformer_options",
    "_inside_attn_wrapper",
}
"""Keyword arguments of ComfyUI's attention functions that do not prevent the use of grouped K/V heads. In a
call with any other keyword argument, K/V heads are repeated instead of grouped."""


def grouped_attention() -> GroupedAttention | None:
    """ComfyUI's PyTorch attention for grouped K/V heads; None if this attention does not support them."""
    # Attention overrides receive the function without the wrapper that ComfyUI's wrap_attn puts around it.
    plain = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)
    return GroupedAttention.of(plain, comfy.ops.scaled_dot_product_attention, output_form)


def output_form(args: tuple, kwargs: dict) -> OutputForm | None:
    """The layout in which ComfyUI wants an attention's output: "rows" or "heads".

    The layout is read from the arguments that follow the number of heads. None if the
    call is not plain attention. In a plain call, q, k and v have their heads on a separate axis; there is no
    mask, no `attn_precision` and no argument outside `KNOWN`.
    """
    mask = args[0] if args else kwargs.get("mask")
    precision = args[1] if len(args) > 1 else kwargs.get("attn_precision")
    is_plain = mask is None and precision is None and len(args) <= 2
    if not is_plain or not kwargs.get("skip_reshape") or not kwargs.keys() <= KNOWN:
        return None
    return "heads" if kwargs.get("skip_output_reshape") else "rows"
