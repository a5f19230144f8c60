"""Grouped-query attention on the cache's K/V heads, without repeating them.

If several query heads share a K/V head, ComfyUI repeats K/V heads before it calls its attention function. In
a regional call this would write and read the whole cache once more in every layer. PyTorch's attention
accepts grouped heads, so this module calls it directly if ComfyUI would use it too.
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
        plain: ComfyUI's PyTorch attention, as passed to attention overrides; calls of other functions are
            left alone.
        sdpa: the function that `plain` calls, with the arguments of torch's scaled_dot_product_attention.
        form_of: the output form requested by a call's arguments after the number of heads; None if the call
            is not equivalent to `sdpa` without a mask.
    """

    def __init__(self, plain: Callable[..., Tensor], sdpa: Callable[..., Tensor], form_of: FormOf):
        self._plain = plain
        self._sdpa = sdpa
        self._form_of = form_of
        self._known: dict[Hashable, bool] = {}  # result of `_same_kernel` by the layout of q, k and v

    @classmethod
    def of(
        cls, plain: Callable[..., Tensor], sdpa: Callable[..., Tensor], form_of: FormOf
    ) -> GroupedAttention | None:
        """The attention; None if torch is older than 2.5, which has no grouped heads, or if its attention has
        been replaced.
        """
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
        """Compute what `func` returns for repeated heads without repeating them; None if that is impossible.

        Args:
            func: ComfyUI's attention function.
            q: (bb, heads, r, e).
            k, v: (bb, kv_heads, rows, e).
            args, kwargs: what ComfyUI passes to `func` after the number of heads.

        Returns:
            (bb, r, heads * e), or (bb, heads, r, e) if ComfyUI requests that form.
        """
        form = self._form_of(args, kwargs) if func is self._plain else None
        if form is None or not self._keeps_kernel(q, k, v):
            return None
        output = self._sdpa(q, k, v, enable_gqa=True)
        return output if form == "heads" else output.transpose(1, 2).flatten(2)

    def _keeps_kernel(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """As `_same_kernel`, cached per layout, because the check takes six operations."""
        layout = (q.dtype, q.device, q.shape, k.shape, q.stride(), k.stride(), v.stride())
        if (known := self._known.get(layout)) is None:
            known = self._known[layout] = _same_kernel(q, k, v)
        return known


def _same_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch selects the same kernel as for repeated heads.

    Not every kernel supports grouped heads: in float32, and on GPUs without flash attention, the fallback
    materializes all attention weights. torch has no public function that returns its choice for any device.
    """
    if q.device.type not in ("cuda", "cpu"):
        return False
    repeated = (t[:, :1].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    try:
        return torch._fused_sdp_choice(q, k, v, enable_gqa=True) == torch._fused_sdp_choice(q, *repeated)
    except RuntimeError:  # no allowed kernel supports grouped heads
        return False
