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
"""Keywords of ComfyUI's attention functions that are supported here."""


def grouped_attention() -> GroupedAttention | None:
    """ComfyUI's PyTorch attention for grouped K/V heads; None if it does not support them."""
    # Unwrapped: this is the function that wrap_attn passes to overrides.
    plain = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)
    return GroupedAttention.of(plain, comfy.ops.scaled_dot_product_attention, output_form)


def output_form(args: tuple, kwargs: dict) -> OutputForm | None:
    """The output form that ComfyUI requests, from the arguments after the number of heads.

    None if the call is not equivalent to plain attention: heads must be on a separate axis, and there must be
    no mask, no precision and no unknown argument.
    """
    mask = args[0] if args else kwargs.get("mask")
    precision = args[1] if len(args) > 1 else kwargs.get("attn_precision")
    is_plain = mask is None and precision is None and len(args) <= 2
    if not is_plain or not kwargs.get("skip_reshape") or not kwargs.keys() <= KNOWN:
        return None
    return "heads" if kwargs.get("skip_output_reshape") else "rows"
