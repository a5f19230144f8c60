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
"""Keyword arguments of ComfyUI's attention functions with which a call may use grouped K/V heads."""


def grouped_attention() -> GroupedAttention | None:
    """ComfyUI's PyTorch attention for grouped K/V heads; None if it does not support them."""
    # ComfyUI's wrap_attn passes the function without its wrapper to attention overrides.
    plain = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)
    return GroupedAttention.of(plain, comfy.ops.scaled_dot_product_attention, output_form)


def output_form(args: tuple, kwargs: dict) -> OutputForm | None:
    """The output form that ComfyUI requests, from an attention's arguments after the number of heads.

    None if the call is not equivalent to plain attention: q, k and v must have heads on a separate axis, and
    there must be no mask, no precision and no argument outside `KNOWN`.
    """
    mask = args[0] if args else kwargs.get("mask")
    precision = args[1] if len(args) > 1 else kwargs.get("attn_precision")
    is_plain = mask is None and precision is None and len(args) <= 2
    if not is_plain or not kwargs.get("skip_reshape") or not kwargs.keys() <= KNOWN:
        return None
    return "heads" if kwargs.get("skip_output_reshape") else "rows"
