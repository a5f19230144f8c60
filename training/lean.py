"""NextDiT's main blocks, rewritten for training: the same computation as ComfyUI's, but faster when compiled.

All elementwise operations of a block are in four functions: `enter`, `leave`, `heads` and `gated`. Without
compilation, these operations take several times as long as the matrix products, because each of them reads
and writes memory. Each of the four functions can be compiled by itself. Matrix products and attention are not
compiled; they use the kernels of PyTorch's libraries. Norms and the residual stream are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.lumina.model as lumina
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_EPS = 1e-6
"""Epsilon of the query and key norms. It is set explicitly, because torch's default epsilon depends on the
input's dtype."""


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of `x` over its last dimension, in float32.

    `weight` has one row for each image of the batch; all these rows are equal. If all images shared one row
    instead, the compiled backward pass would sum its gradient over all tokens of the batch in a single thread
    block of the GPU, which is slow.
    """
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def enter(x: Tensor, weight: Tensor, eps: float, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Compute a sublayer's input from the residual stream `x` (b, n, d).

    Norms `x`, multiplies it by 1 + `scale` (b, d), and converts it to the dtype `kind`.
    """
    return (rms(x, weight.unsqueeze(1), eps) * (1 + scale.float().unsqueeze(1))).to(kind)


def leave(x: Tensor, y: Tensor, weight: Tensor, eps: float, gate: Tensor) -> Tensor:
    """Add a sublayer's output `y` to the residual stream `x` (b, n, d), after norming and gating `y`."""
    return x + gate.float().tanh().unsqueeze(1) * rms(y, weight.unsqueeze(1), eps)


def heads(
    qkv: Tensor, sizes: tuple[int, int, int], q_weight: Tensor, k_weight: Tensor, angles: Tensor
) -> tuple[Tensor, ...]:
    """Split `qkv` (b, n, channels of all heads) into queries, keys and values (b, heads, n, head_dim).

    Queries and keys are normed with the weights (b, head_dim) and rotated by `angles`
    (1, n, 1, head_dim / 2, 2, 2).
    """
    q, k, v = (part.unflatten(-1, (-1, q_weight.shape[1])) for part in qkv.split(sizes, dim=-1))
    q = rotate(rms(q, q_weight[:, None, None], HEAD_EPS), angles)
    k = rotate(rms(k, k_weight[:, None, None], HEAD_EPS), angles)
    return tuple(each.to(v.dtype).transpose(1, 2).contiguous() for each in (q, k, v))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply rotary embedding to `x` (b, n, heads, head_dim), to neighbouring channels as in ComfyUI."""
    pairs = x.unflatten(-1, (-1, 1, 2))
    return (angles[..., 0] * pairs[..., 0] + angles[..., 1] * pairs[..., 1]).flatten(-2)


def gated(x1: Tensor, x3: Tensor) -> Tensor:
    """The gated activation (SwiGLU) of the feed-forward layer."""
    return F.silu(x1) * x3


PLAIN: dict[str, Callable[..., Any]] = {"enter": enter, "leave": leave, "heads": heads, "gated": gated}


def compiled() -> dict[str, Callable[..., Any]]:
    """The four functions compiled with dynamic shapes, so that one kernel serves all image sizes."""
    return {name: torch.compile(function, dynamic=True) for name, function in PLAIN.items()}


def block_forward(block: nn.Module, parts: dict[str, Callable[..., Any]]) -> Callable[..., Tensor]:
    """Create a `forward` for a JointTransformerBlock whose scales and gates depend on the noise level
    (`modulation` is True). Its elementwise operations are the functions in `parts`, with the keys of `PLAIN`.

    Each forward pass reads `parts` again, so entries can be replaced after `forward` was created.
    """
    attention, feed, eps = block.attention, block.feed_forward, block.attention_norm1.eps
    counts = (attention.n_local_heads, attention.n_local_kv_heads, attention.n_local_kv_heads)
    sizes = tuple(count * attention.head_dim for count in counts)

    def forward(
        x: Tensor, x_mask: Tensor | None, freqs_cis: Tensor, adaln_input: Tensor, **options: Any
    ) -> Tensor:
        kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        scale_msa, gate_msa, scale_mlp, gate_mlp = block.adaLN_modulation(adaln_input).chunk(4, dim=1)

        def rows(norm: nn.Module) -> Tensor:
            return norm.weight.expand(len(x), -1)

        h = attention.qkv(parts["enter"](x, rows(block.attention_norm1), eps, scale_msa, kind))
        q, k, v = parts["heads"](h, sizes, rows(attention.q_norm), rows(attention.k_norm), freqs_cis)
        h = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        x = parts["leave"](x, attention.out(h), rows(block.attention_norm2), eps, gate_msa)
        h = parts["enter"](x, rows(block.ffn_norm1), eps, scale_mlp, kind)
        h = feed.w2(parts["gated"](feed.w1(h), feed.w3(h)))
        return parts["leave"](x, h, rows(block.ffn_norm2), eps, gate_mlp)

    return forward


def install(network: nn.Module) -> dict[str, Callable[..., Any]]:
    """Make the modulated blocks of `network` use the four functions.

    Returns the dict from which all blocks take the functions. Replacing an entry of the dict changes all
    blocks.
    """
    parts = dict(PLAIN)
    for module in network.modules():
        if isinstance(module, lumina.JointTransformerBlock) and module.modulation:
            module.forward = block_forward(module, parts)
    return parts
