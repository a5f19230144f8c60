"""The adapter for Flux.2 (dev, Klein), whose network is ComfyUI's class Flux with other parameters."""

from __future__ import annotations

from torch import nn

from .flux import FluxAdapter

TEXT_ROWS = 512
"""ComfyUI pads the text of Flux.2 to at least this many rows."""


class Flux2Adapter(FluxAdapter):
    """The blocks take the same inputs as those of Flux.1. All blocks of a kind share one modulation.

    The rows of reference images may have a modulation of their own, that of timestep zero: the network then
    passes the range of these rows, which starts after all image rows, to the blocks and to the final layer.
    At regional steps, no row is in this range, because the rows of reference images are frozen; so the range
    need not be changed.
    """

    family = "Flux.2"

    def unsupported(self, network: nn.Module) -> str | None:
        params = network.params
        is_like_flux2 = getattr(params, "global_modulation", False) and getattr(params, "mlp_silu_act", False)
        others = [name for name in ("yak_mlp", "txt_norm") if getattr(params, name, False)]
        if is_like_flux2 and not others and params.patch_size == 1 and params.vec_in_dim is None:
            return None
        return "a Flux that is neither Flux.1 nor Flux.2 (LongCat-Image or Ovis-Image, say)"

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        return max(n_text, TEXT_ROWS)
