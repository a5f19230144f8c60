"""Grouped-query attention on the cache's K/V heads, without repeating these heads.

If several query heads share a K/V head, ComfyUI repeats K/V heads before it calls its attention function. In
a regional call, the repetition would write and read the whole cache once more in every layer. PyTorch's
attention accepts K/V heads that are not repeated, so this module calls PyTorch's attention directly if that
is the attention that ComfyUI uses.
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
        plain: ComfyUI's PyTorch attention, as passed to attention overrides. Heads must be repeated in calls
            of any other attention function.
        sdpa: the function that `plain` calls, with the arguments of torch's scaled_dot_product_attention.
        form_of: gets those arguments of a call of `plain` that follow the number of heads. Returns the layout
            of the call's output, "rows" or "heads"; None if `sdpa` without a mask would give another output.
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
        """The grouped attention; None if torch is older than 2.5 and has no support for grouped heads, or if
        torch's own attention function has been replaced.
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
        """The output of `func` for repeated K/V heads, computed without repeating the heads. None if that is
        impossible, or if torch would select another kernel for grouped heads than for repeated heads.

        Args:
            func: ComfyUI's attention function.
            q: (bb, heads, r, e).
            k, v: (bb, kv_heads, rows, e).
            args, kwargs: the arguments that follow the number of heads in ComfyUI's call of `func`.

        Returns:
            (bb, r, heads * e), or (bb, heads, r, e) if ComfyUI requests that form.
        """
        form = self._form_of(args, kwargs) if func is self._plain else None
        if form is None or not self._keeps_kernel(q, k, v):
            return None
        output = self._sdpa(q, k, v, enable_gqa=True)
        return output if form == "heads" else output.transpose(1, 2).flatten(2)

    def _keeps_kernel(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """As `_same_kernel`, but each result is kept for later calls with the same layout of q, k and v,
        because the check takes six torch operations.
        """
        layout = (q.dtype, q.device, q.shape, k.shape, q.stride(), k.stride(), v.stride())
        if (known := self._known.get(layout)) is None:
            known = self._known[layout] = _same_kernel(q, k, v)
        return known


def _same_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch selects the same attention kernel if K/V heads are grouped as if they are repeated.

    Not every kernel supports grouped heads. For grouped heads in float32, or on GPUs without flash attention,
    torch therefore falls back to a kernel that materializes all attention weights. The selection is read from
    a private function of torch, because no public function returns it for all devices.
    """
    if q.device.type not in ("cuda", "cpu"):
        return False
    repeated = (t[:, :1].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    try:
        return torch._fused_sdp_choice(q, k, v, enable_gqa=True) == torch._fused_sdp_choice(q, *repeated)
    except RuntimeError:  # none of the kernels that torch may use supports grouped heads
        return False
