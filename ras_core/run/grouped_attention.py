"""Attention to grouped K/V heads as the cache keeps them.

Where several query heads share a K/V head, ComfyUI repeats K/V heads before it calls its attention function.
For a regional call that would be the whole cache, written and read once more in every layer. PyTorch's
attention takes such heads as they are; it is called directly where ComfyUI would call it too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import BuiltinFunctionType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

OutputForm = Literal["rows", "heads"]
FormOf = Callable[[tuple, dict], OutputForm | None]


class GroupedAttention:
    """ComfyUI's PyTorch attention, for K/V heads that are not repeated.

    Args:
        plain: ComfyUI's function, as overrides of its attention get it; no other one is replaced.
        sdpa: what `plain` calls, with the arguments of torch's scaled_dot_product_attention.
        form_of: what a call's arguments after the number of heads ask for; None if it is anything but `sdpa`
            without a mask.
    """

    def __init__(self, plain: Callable[..., Tensor], sdpa: Callable[..., Tensor], form_of: FormOf):
        self._plain = plain
        self._sdpa = sdpa
        self._form_of = form_of
        self._known: dict[Hashable, bool] = {}  # by layout of q, k and v

    @classmethod
    def of(
        cls, plain: Callable[..., Tensor], sdpa: Callable[..., Tensor], form_of: FormOf
    ) -> GroupedAttention | None:
        """None where this torch takes no grouped heads (before 2.5), or runs another pack's attention."""
        if not isinstance(F.scaled_dot_product_attention, BuiltinFunctionType):
            return None
        q, kv = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 1, 8)
        try:
            sdpa(q, kv, kv, enable_gqa=True)
            torch._fused_sdp_choice(q, kv, kv, enable_gqa=True)
        except (TypeError, AttributeError, RuntimeError):
            return None
        return cls(plain, sdpa, form_of)

    def __call__(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args, **kwargs
    ) -> Tensor | None:
        """What `func` gives for repeated heads; None where that is to be left to `func`.

        Args:
            func: ComfyUI's attention function.
            q: (bb, heads, r, e).
            k, v: (bb, kv_heads, rows, e).
            args, kwargs: what ComfyUI passes to `func` after the number of heads.

        Returns:
            (bb, r, heads * e), or (bb, heads, r, e) where ComfyUI asks for that.
        """
        form = self._form_of(args, kwargs) if func is self._plain else None
        if form is None or not self._keeps_kernel(q, k, v):
            return None
        output = self._sdpa(q, k, v, enable_gqa=True)
        return output if form == "heads" else output.transpose(1, 2).flatten(2)

    def _keeps_kernel(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """As `_same_kernel`, cached for all attentions of one layout: finding out takes six operations."""
        layout = (q.dtype, q.device, q.shape, k.shape, q.stride(), k.stride(), v.stride())
        if (known := self._known.get(layout)) is None:
            known = self._known[layout] = _same_kernel(q, k, v)
        return known


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
