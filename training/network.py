"""The transformers to be trained: ComfyUI's own network classes, with what training and compiling need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.flux.math as flux_math
import comfy.ldm.flux.model as flux
import comfy.ldm.lumina.model as lumina
import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.loader import FAMILIES, POSITION_GRID, SD3_WIDTH, network_config, sincos_table
from .lean import HEAD_EPS


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options: object
) -> Tensor:
    """What ComfyUI's attention computes, without its switches, so that compilation sees one operation."""
    if not options.get("skip_reshape"):
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
    return out.transpose(1, 2).flatten(2)


def fixed_rotation(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Rotary angles of the first row for the whole batch, computed once for each number of tokens.

    Compiled code then reads a table; it has no double-precision trigonometry of its own.
    """
    tables: dict[int, Tensor] = {}

    def wrapped(positions: Tensor) -> Tensor:
        if positions.shape[1] not in tables:
            tables[positions.shape[1]] = function(positions[:1].detach())
        return tables[positions.shape[1]]

    return wrapped


def plain_rotation(q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of queries and keys (b, n, heads, d) by (1, n, 1, d / 2, 2, 2), nothing in place."""
    return _rotate(q, angles), _rotate(k, angles)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    return (angles[..., 0] * pairs[..., 0] + angles[..., 1] * pairs[..., 1]).flatten(-2).type_as(x)


def build_network(family: str) -> nn.Module:
    """The family's network with plain torch layers, freshly initialised. Gates and output start at zero."""
    network, embedders = BUILDERS[family](network_config(FAMILIES[family]))
    for name, parameter in network.named_parameters():
        _initialise(name, parameter)
    for embedder in embedders:  # the residual stream stays float32 under autocast
        embedder.register_forward_hook(lambda module, args, out: out.float())
    return network


def _build_sd3(config: dict[str, Any]) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    network = mmdit.OpenAISignatureMMDITWrapper(**config, operations=nn)
    network.pos_embed = sincos_table(SD3_WIDTH, POSITION_GRID)
    mmdit.optimized_attention = plain_attention
    return network, (network.x_embedder, network.context_embedder)


def _build_nextdit(config: dict[str, Any]) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    network = lumina.NextDiT(**config, operations=nn)
    network.rope_embedder.forward = fixed_rotation(network.rope_embedder.forward)
    lumina.optimized_attention_masked, lumina.apply_rope = plain_attention, plain_rotation
    return network, (network.x_embedder, network.cap_embedder)


def _build_flux(config: dict[str, Any]) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    network = flux.Flux(**config, operations=nn)
    network.pe_embedder.forward = fixed_rotation(network.pe_embedder.forward)
    flux_math.optimized_attention, flux_math.apply_rope = plain_attention, plain_rotation
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):  # its input is kept for the gradient, then added to in place
            module.register_forward_pre_hook(lambda module, args: (args[0].clone(),))
        elif isinstance(module, nn.RMSNorm):
            module.eps = HEAD_EPS
    return network, (network.img_in, network.txt_in)


BUILDERS = {"sd3": _build_sd3, "lumina2": _build_nextdit, "flux": _build_flux}
"""For each family: from its network's arguments to the network and the embedders of its tokens."""

SMALL_START = ("t_embedder", "y_embedder", "time_in", "vector_in")
ZERO_START = ("adaLN_modulation", "_mod.lin", "modulation.lin", "final_layer")


@torch.no_grad()
def _initialise(name: str, parameter: Tensor) -> None:
    if name == "cap_embedder.1.bias":  # zero rows (padding) would have their gradient blown up by eight norms
        nn.init.normal_(parameter, std=0.5)
    elif any(part in name for part in ZERO_START) or name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif parameter.ndim == 1:
        nn.init.ones_(parameter)
    elif any(part in name for part in SMALL_START):
        nn.init.normal_(parameter, std=0.02)
    else:
        nn.init.xavier_uniform_(parameter.flatten(1))


def predict(
    network: nn.Module, family: str, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """Noise minus picture, called as ComfyUI calls the family at noise level `sigma` (b,)."""
    if family == "sd3":
        return network(x, sigma * 1000, context=context, y=pooled)
    if family == "flux":
        return network._forward(x, sigma, context, pooled)
    return network._forward(x, sigma, context, context.shape[1])


def shift_time(u: Tensor, shift: float) -> Tensor:
    """Flow-matching shift of SD3 (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)
