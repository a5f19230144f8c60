"""Attention to grouped K/V heads as the cache keeps them.

Where several query heads share a K/V head, the host repeats K/V heads before it calls its attention function.
For a regional call that would be the whole cache, written and read once more in every layer. PyTorch's
attention takes such heads as they are; it is called in the host's stead where the host would call it too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import BuiltinFunctionType

import torch
import torch.nn.functional as F
from torch import Tensor

KNOWN = {
    "mask",
    "attn_precision",
    "skip_reshape",
    "skip_output_reshape",
    "transformer_options",
    "_inside_attn_wrapper",
}
"""Keywords of the host's attention functions whose meaning is known."""


class GroupedAttention:
    """The host's PyTorch attention, for K/V heads that are not repeated.

    Args:
        plain: the host's function, as overrides of its attention get it; no other one is replaced.
        sdpa: what `plain` calls, with the arguments of torch's scaled_dot_product_attention.
    """

    def __init__(self, plain: Callable[..., Tensor], sdpa: Callable[..., Tensor]):
        self._plain = plain
        self._sdpa = sdpa
        self._known: dict[Hashable, bool] = {}  # by form of q, k and v

    @classmethod
    def of(cls, plain: Callable[..., Tensor], sdpa: Callable[..., Tensor]) -> GroupedAttention | None:
        """None where this torch takes no grouped heads (before 2.5), or runs another pack's attention."""
        if not isinstance(F.scaled_dot_product_attention, BuiltinFunctionType):
            return None
        q, kv = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 1, 8)
        try:
            sdpa(q, kv, kv, enable_gqa=True)
            torch._fused_sdp_choice(q, kv, kv, enable_gqa=True)
        except (TypeError, AttributeError, RuntimeError):
            return None
        return cls(plain, sdpa)

    def __call__(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args, **kwargs
    ) -> Tensor | None:
        """What `func` gives for repeated heads; None where that is to be left to `func`.

        Args:
            func: the host's attention function.
            q: (bb, heads, r, e).
            k, v: (bb, kv_heads, rows, e).
            args, kwargs: what the host passes to `func` after the number of heads.

        Returns:
            (bb, r, heads * e), or (bb, heads, r, e) where the host asks for that.
        """
        if func is not self._plain or not _is_plain(args, kwargs) or not self._keeps_kernel(q, k, v):
            return None
        output = self._sdpa(q, k, v, enable_gqa=True)
        return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)

    def _keeps_kernel(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """As `_same_kernel`, cached for all attentions of one form: finding out takes six operations."""
        form = (q.dtype, q.device, q.shape, k.shape, q.stride(), k.stride(), v.stride())
        if (known := self._known.get(form)) is None:
            known = self._known[form] = _same_kernel(q, k, v)
        return known


def _is_plain(args: tuple, kwargs: dict) -> bool:
    """Heads on an axis of their own, no mask, no wish for a precision, and nothing unknown."""
    mask = args[0] if args else kwargs.get("mask")
    precision = args[1] if len(args) > 1 else kwargs.get("attn_precision")
    return (
        mask is None
        and precision is None
        and len(args) <= 2
        and bool(kwargs.get("skip_reshape"))
        and kwargs.keys() <= KNOWN
    )


def _same_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch runs the kernel that it runs for repeated heads.

    Not each takes grouped ones: in float32, and on GPUs without flash attention, all weights would become
    one tensor. torch has no public function that says what it will run on any device.
    """
    if q.device.type not in ("cuda", "cpu"):
        return False
    repeated = (t[:, :1].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    try:
        return torch._fused_sdp_choice(q, k, v, enable_gqa=True) == torch._fused_sdp_choice(q, *repeated)
    except RuntimeError:  # none that is allowed takes them
        return False
