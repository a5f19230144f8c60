"""The network of Lumina-Next (Next-DiT, arXiv 2406.18583), written with ComfyUI's operations.

Modules have the names of diffusers' implementation, so that its weight files load unchanged. Letters in
shapes: b batch, n image tokens, l caption tokens, d width of the network, e channels of a head, p patch size,
out channels of the raw output.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.ldm.common_dit
import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from .rotary import rotary_table, time_aware_factors

TIME_CHANNELS = 256
CONDITION_WIDTH = 1024
"""Upper limit of the width of the condition. This vector, computed from time and caption, modulates every
layer."""


class LuminaNextDiT(nn.Module):
    """The transformer. In each layer, image tokens attend to each other and, through a gate, to the caption.

    A vector computed from time and caption modulates every layer.

    Args:
        in_channels: channels of the latent.
        hidden_size: width d of the network.
        num_layers: number of layers.
        num_attention_heads, num_kv_heads: number of query heads, and of K/V heads.
        ffn_size: inner width of the feed-forward layers.
        cross_attention_dim: width of a caption token's embedding.
        out_channels: channels of the raw output; the first `in_channels` of them are the velocity.
        patch_size: latent pixels along a side of a token's patch.
        sample_size: latent pixels along a side of the training images. The rotary positions and the attention
            scale for other image sizes are derived from it.
        scaling_watershed: see `time_aware_factors`.
        dtype, device, operations: as passed by ComfyUI.
    """

    def __init__(
        self,
        in_channels: int = 4,
        hidden_size: int = 2304,
        num_layers: int = 24,
        num_attention_heads: int = 32,
        num_kv_heads: int = 8,
        ffn_size: int = 6144,
        cross_attention_dim: int = 2048,
        out_channels: int = 8,
        patch_size: int = 2,
        sample_size: int = 128,
        scaling_watershed: float = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
    ):
        super().__init__()
        made = {"dtype": dtype, "device": device}
        self.dtype = dtype
        self.in_channels, self.out_channels = in_channels, out_channels
        self.patch_size, self.hidden_size = patch_size, hidden_size
        self.head_dim = hidden_size // num_attention_heads
        self.base_tokens = (sample_size // patch_size) ** 2
        self.scaling_watershed = scaling_watershed
        width = min(hidden_size, CONDITION_WIDTH)
        self.patch_embedder = nn.ModuleDict(
            {"proj": operations.Linear(patch_size**2 * in_channels, hidden_size, **made)}
        )
        self.pad_token = nn.Parameter(torch.empty(hidden_size, **made))  # in every weight file, but unused
        self.time_caption_embed = TimeCaptionEmbedding(cross_attention_dim, width, made, operations)
        heads = (num_attention_heads, num_kv_heads)
        self.layers = nn.ModuleList(
            LuminaNextBlock(hidden_size, heads, ffn_size, cross_attention_dim, width, made, operations)
            for _ in range(num_layers)
        )
        self.norm_out = FinalLayer(hidden_size, width, patch_size**2 * out_channels, made, operations)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, attention_mask: Tensor | None = None,
        control: dict | None = None, transformer_options: dict | None = None, **kwargs,
    ) -> Tensor:  # fmt: skip
        """The velocity with ComfyUI's sign, that is noise minus image: (b, c, H, W).

        Args:
            x: (b, c, H, W) latent, of any size.
            timesteps: (b,) sigma, 1 for noise and 0 for the image. The network's own time is 1 - sigma.
            context: (b, l, cross_attention_dim) embeddings of the caption tokens.
            attention_mask: (b, l), 0 for padding tokens of the caption; None if no caption is padded.
            transformer_options: ComfyUI's options. Model wrappers and an attention override in them are
                supported.
        """
        options = transformer_options or {}
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        ).execute(x, timesteps, context, attention_mask, control, options, **kwargs)

    def _forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, attention_mask: Tensor | None = None,
        control: dict | None = None, transformer_options: dict | None = None, **kwargs,
    ) -> Tensor:  # fmt: skip
        time = 1.0 - timesteps
        size, patch = x.shape[2:], self.patch_size
        x = comfy.ldm.common_dit.pad_to_patch_size(x, (patch, patch))
        h, w = x.shape[2] // patch, x.shape[3] // patch
        tokens = x.unflatten(3, (w, patch)).unflatten(2, (h, patch))  # (b, c, h, p, w, p)
        tokens = tokens.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (b, n, c * p * p)
        hidden = self.patch_embedder["proj"](tokens)
        mask = torch.ones_like(context[..., 0]) if attention_mask is None else attention_mask
        condition = self.time_caption_embed(time, context, mask)
        caption = (context, _additive(mask, hidden.dtype))
        rotary = self._rotary(time[:1], h, w)
        attention = AttentionCall(self._proportional_scale(h * w), transformer_options or {})
        for layer in self.layers:
            hidden = layer(hidden, rotary, caption, condition, attention)
        out = self.norm_out(hidden, condition)  # (b, n, p * p * out)
        out = out.unflatten(2, (patch, patch, self.out_channels)).unflatten(1, (h, w))
        out = out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (b, out, h * p, w * p)
        return -out[:, : self.in_channels, : size[0], : size[1]]

    def _rotary(self, time: Tensor, h: int, w: int) -> Tensor:
        scale = math.sqrt(h * w / self.base_tokens)
        factors = time_aware_factors(time, self.scaling_watershed, scale)
        return rotary_table((h, w), self.head_dim, *factors, time.device)

    def _proportional_scale(self, n: int) -> float:
        """Factor on the scale of self-attention, so that attention entropy does not grow with image size."""
        return math.sqrt(math.log(n, self.base_tokens))


class AttentionCall:
    """Attention settings that all layers share during one forward call of the network.

    Args:
        scale: factor on self-attention's usual scale. This factor depends on the number of tokens in the
            whole image, even in steps that process only some of the tokens.
        options: ComfyUI's transformer options.
    """

    def __init__(self, scale: float, options: dict):
        self.scale = scale
        self.options = options


class LuminaNextBlock(nn.Module):
    """A layer: self-attention plus gated attention to the caption, then a feed-forward layer.

    The sum of both attentions is projected by one shared output matrix.
    """

    def __init__(
        self, d: int, heads: tuple[int, int], ffn_size: int, caption_width: int, condition_width: int,
        made: dict, ops: Any,
    ):  # fmt: skip
        super().__init__()
        self.gate = nn.Parameter(torch.empty(heads[0], **made))
        self.attn1 = Attention(d, d, heads, made, ops)
        self.attn2 = Attention(d, caption_width, heads, made, ops)
        self.attn2.to_out = nn.ModuleList([ops.Linear(d, d, bias=False, **made)])
        self.feed_forward = FeedForward(d, ffn_size, made, ops)
        self.norm1 = ModulatedNorm(d, condition_width, made, ops)
        self.ffn_norm1 = ops.RMSNorm(d, eps=1e-5, **made)
        self.norm2 = ops.RMSNorm(d, eps=1e-5, **made)
        self.ffn_norm2 = ops.RMSNorm(d, eps=1e-5, **made)
        self.norm1_context = ops.RMSNorm(caption_width, eps=1e-5, **made)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        caption: tuple[Tensor, Tensor],
        condition: Tensor,
        call: AttentionCall,
    ) -> Tensor:
        """Map x (b, n, d) to (b, n, d); `rotary` contains the rotation for each of the n tokens."""
        normed, attention_gate, ffn_scale, ffn_gate = self.norm1(x, condition)
        mixed = self._mix(normed, rotary, caption, call)
        x = x + attention_gate * self.norm2(self.attn2.to_out[0](mixed))
        inner = self.feed_forward(self.ffn_norm1(x) * ffn_scale)
        return x + ffn_gate * self.ffn_norm2(inner)

    def _mix(
        self, x: Tensor, rotary: Tensor, caption: tuple[Tensor, Tensor], call: AttentionCall
    ) -> Tensor:  # (b, n, d)
        rows, mask = caption
        own = self.attn1(x, x, rotary, rotary, call.options, scale=call.scale)
        seen = self.attn2(x, self.norm1_context(rows), rotary, None, call.options, mask=mask)
        gate = comfy.model_management.cast_to(self.gate, dtype=x.dtype, device=x.device).tanh()
        return own + seen * gate.repeat_interleave(x.shape[2] // gate.shape[0])


class Attention(nn.Module):
    """Grouped-query attention without an output projection.

    Queries and keys are normalised over the channels of all heads together.
    """

    def __init__(self, d: int, context_width: int, heads: tuple[int, int], made: dict, ops: Any):
        super().__init__()
        self.heads, self.kv_heads = heads
        kv_width = d // self.heads * self.kv_heads
        self.to_q = ops.Linear(d, d, bias=False, **made)
        self.to_k = ops.Linear(context_width, kv_width, bias=False, **made)
        self.to_v = ops.Linear(context_width, kv_width, bias=False, **made)
        self.norm_q = ops.LayerNorm(d, eps=1e-5, **made)
        self.norm_k = ops.LayerNorm(kv_width, eps=1e-5, **made)

    @property
    def kv_repeat(self) -> int:
        """Number of query heads that share one K/V head."""
        return self.heads // self.kv_heads

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        query_rotary: Tensor,
        key_rotary: Tensor | None,
        options: dict,
        scale: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:  # (b, n, d)
        q = apply_rope1(self.norm_q(self.to_q(x)).unflatten(2, (self.heads, -1)), query_rotary)
        k = self.norm_k(self.to_k(context)).unflatten(2, (self.kv_heads, -1))
        if key_rotary is not None:
            k = apply_rope1(k, key_rotary)
        v = self.to_v(context).unflatten(2, (self.kv_heads, -1))
        q = q * scale if scale != 1.0 else q  # (b, n, heads, e)
        k, v = (t.repeat_interleave(self.kv_repeat, dim=2) for t in (k, v))
        q, k, v = (t.movedim(1, 2) for t in (q, k, v))
        return optimized_attention(
            q, k, v, self.heads, mask=mask, skip_reshape=True, transformer_options=options
        )


class ModulatedNorm(nn.Module):
    """Normalises x before attention, and computes the layer's scales and gates from time and caption."""

    def __init__(self, d: int, condition_width: int, made: dict, ops: Any):
        super().__init__()
        self.linear = ops.Linear(condition_width, 4 * d, **made)
        self.norm = ops.RMSNorm(d, eps=1e-5, **made)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised x (b, n, d), then the attention gate, the feed-forward scale and the
        feed-forward gate, each (b, 1, d). x is already multiplied by the attention scale.
        """
        modulation = self.linear(F.silu(condition))[:, None]
        attention_scale, attention_gate, ffn_scale, ffn_gate = modulation.chunk(4, dim=2)
        return self.norm(x) * (1 + attention_scale), attention_gate.tanh(), 1 + ffn_scale, ffn_gate.tanh()


class FeedForward(nn.Module):
    """Feed-forward layer with a SwiGLU gate: (b, n, d) -> (b, n, d)."""

    def __init__(self, d: int, inner: int, made: dict, ops: Any):
        super().__init__()
        self.linear_1 = ops.Linear(d, inner, bias=False, **made)
        self.linear_2 = ops.Linear(inner, d, bias=False, **made)
        self.linear_3 = ops.Linear(d, inner, bias=False, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class FinalLayer(nn.Module):
    """Map each token to its patch of the output, with p * p pixels: (b, n, d) -> (b, n, p * p * out)."""

    def __init__(self, d: int, condition_width: int, patch_values: int, made: dict, ops: Any):
        super().__init__()
        self.linear_1 = ops.Linear(condition_width, d, **made)
        self.norm = ops.LayerNorm(d, eps=1e-6, elementwise_affine=False, **made)
        self.linear_2 = ops.Linear(d, patch_values, **made)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale = 1 + self.linear_1(F.silu(condition))[:, None]
        return self.linear_2(self.norm(x) * scale)


class TimeCaptionEmbedding(nn.Module):
    """Compute the condition, one vector for each image, from the time and the mean of the caption tokens'
    embeddings: (b, width). This width is not the network's d; it is at most CONDITION_WIDTH.
    """

    def __init__(self, caption_width: int, width: int, made: dict, ops: Any):
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {
                "linear_1": ops.Linear(TIME_CHANNELS, width, **made),
                "linear_2": ops.Linear(width, width, **made),
            }
        )
        self.caption_embedder = nn.Sequential(
            ops.LayerNorm(caption_width, **made), ops.Linear(caption_width, width, **made)
        )

    def forward(self, time: Tensor, caption: Tensor, mask: Tensor) -> Tensor:
        mlp = self.timestep_embedder
        embedded = mlp["linear_2"](F.silu(mlp["linear_1"](_sinusoid(time).to(caption.dtype))))
        weight = mask.float()[..., None]
        mean = (caption * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return embedded + self.caption_embedder(mean.to(caption.dtype))


def _sinusoid(time: Tensor) -> Tensor:
    """Embed times (b,) in 0..1 as (b, 256): cosines, then sines, at frequencies from 1 to almost 1/10000."""
    half = TIME_CHANNELS // 2
    exponent = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angle = time.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias (b, 1, 1, l) from a mask (b, l): 0 for tokens, the lowest number for padding."""
    low = torch.finfo(dtype).min
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, low)[:, None, None]
