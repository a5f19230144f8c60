"""Build the transformers for training: ComfyUI's network classes, adapted for autograd and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Compute what ComfyUI's attention functions compute, always by `scaled_dot_product_attention`.

    torch.compile can trace this operation.
    """
    if not options.get("skip_reshape"):
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
    return out.transpose(1, 2).flatten(2)


def fixed_rotation(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function of rotary angles, so that it runs only once for each number of tokens.

    The angles of the batch's first image are used for the whole batch, since all images have the same token
    positions. Compiled code then reads a table instead of computing double-precision sines and cosines.
    """
    tables: dict[int, Tensor] = {}

    def wrapped(positions: Tensor) -> Tensor:
        if positions.shape[1] not in tables:
            tables[positions.shape[1]] = function(positions[:1].detach())
        return tables[positions.shape[1]]

    return wrapped


def plain_rotation(q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Apply rotary `angles` (1, n, 1, d / 2, 2, 2) to queries and keys (b, n, heads, d).

    Returns new tensors; nothing is changed in place, because autograd may need the old values.
    """
    return _rotate(q, angles), _rotate(k, angles)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    return (angles[..., 0] * pairs[..., 0] + angles[..., 1] * pairs[..., 1]).flatten(-2).type_as(x)


def build_network(family: str) -> nn.Module:
    """Build a family's network from plain torch layers.

    The modulation layers, which compute the gates of the blocks, and the final layer are initialised with
    zeros.
    """
    network, embedders = BUILDERS[family](network_config(FAMILIES[family]))
    for name, parameter in network.named_parameters():
        _initialise(name, parameter)
    for embedder in embedders:  # float32, so that the residual stream is float32 even under autocast
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
        if isinstance(module, nn.LayerNorm):  # autograd needs its input, which Flux changes in place later
            module.register_forward_pre_hook(lambda module, args: (args[0].clone(),))
        elif isinstance(module, nn.RMSNorm):
            module.eps = HEAD_EPS
    return network, (network.img_in, network.txt_in)


BUILDERS = {"sd3": _build_sd3, "lumina2": _build_nextdit, "flux": _build_flux}
"""For each family, a function that takes the arguments of the network class, and returns the network and its
token embedders."""

SMALL_START = ("t_embedder", "y_embedder", "time_in", "vector_in")
ZERO_START = ("adaLN_modulation", "_mod.lin", "modulation.lin", "final_layer")


@torch.no_grad()
def _initialise(name: str, parameter: Tensor) -> None:
    if name == "cap_embedder.1.bias":  # if zero, eight norms would amplify the gradient of padding rows
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
    network: nn.Module,
    family: str,
    x: Tensor,
    sigma: Tensor,
    context: Tensor,
    pooled: Tensor,
    references: Sequence[Tensor] = (),
) -> Tensor:
    """Predict the difference noise - image at the noise levels `sigma` (b,).

    The network is called with the same arguments as in ComfyUI. `references` are the latents (b, 16, h, w) of
    reference images; only Flux takes them.
    """
    if family == "sd3":
        return network(x, sigma * 1000, context=context, y=pooled)
    if family == "flux":
        return network._forward(x, sigma, context, pooled, ref_latents=list(references) or None)
    return network._forward(x, sigma, context, context.shape[1])


def shift_time(u: Tensor, shift: float) -> Tensor:
    """Shift noise levels `u` in 0..1 as SD3 does for flow matching (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)
