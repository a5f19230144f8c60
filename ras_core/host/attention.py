"""ComfyUI's PyTorch attention, for K/V heads that are not repeated."""

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
"""Keywords of ComfyUI's attention functions whose meaning is known."""


def grouped_attention() -> GroupedAttention | None:
    """ComfyUI's PyTorch attention for grouped K/V heads; None where it cannot be called that way."""
    plain = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)  # what wrap_attn hands on
    return GroupedAttention.of(plain, comfy.ops.scaled_dot_product_attention, output_form)


def output_form(args: tuple, kwargs: dict) -> OutputForm | None:
    """The form of output that ComfyUI asks an attention function for, by the arguments after the number of
    heads; None unless they are plain: heads on an axis of their own, no mask, no precision, nothing unknown.
    """
    mask = args[0] if args else kwargs.get("mask")
    precision = args[1] if len(args) > 1 else kwargs.get("attn_precision")
    is_plain = mask is None and precision is None and len(args) <= 2
    if not is_plain or not kwargs.get("skip_reshape") or not kwargs.keys() <= KNOWN:
        return None
    return "heads" if kwargs.get("skip_output_reshape") else "rows"
