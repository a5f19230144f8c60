"""Adapters, which state what RAS must know about the networks of a model family, and their registry.

Read `base` first, which defines what an adapter states, then an example: `sd3`, `lumina2`, `lumina_next` or
`flux`. The other adapters:

- like `flux`: `flux2`, `chroma`, `hunyuan_image`.
- text and image as two tensors in all blocks: `qwen_image`, `mage_flow`.
- text rows before the image rows in one sequence: `ideogram4`, `krea2`.
- a second attention to the text: `cosmos_predict2` (with Anima), `kandinsky5`.
- text and image first as two tensors, then as one sequence: `aura_flow`, and `hidream`, in which the text
  follows the image.

`cost` computes FLOPs and the size of the K/V cache; `control` gathers a ControlNet's residuals;
`row_patches` finds patches of other nodes that get rows of tokens; `refused` has the reasons why other
networks are not supported. README.md explains how to add a family.

1. `adapter_for` finds the adapter of a network, or raises an error.
2. The adapter tells which modules of the network are its blocks, how many rows follow the image rows, and
   which inputs of a block have rows of image tokens, so that rows of skipped tokens can be left out.

Imports: rows, errors.
"""

from __future__ import annotations

from torch import nn

from ..errors import RASError
from .aura_flow import AuraFlowAdapter
from .base import ModelAdapter
from .chroma import ChromaAdapter
from .cosmos_predict2 import CosmosPredict2Adapter
from .flux import FluxAdapter
from .flux2 import Flux2Adapter
from .hidream import HiDreamAdapter
from .hunyuan_image import HunyuanImageAdapter
from .ideogram4 import Ideogram4Adapter
from .kandinsky5 import Kandinsky5Adapter
from .krea2 import Krea2Adapter
from .lumina2 import NextDiTAdapter
from .lumina_next import LuminaNextAdapter
from .mage_flow import MageFlowAdapter
from .qwen_image import QwenImageAdapter
from .refused import reason
from .sd3 import SD3Adapter

ADAPTERS: tuple[ModelAdapter, ...] = (
    SD3Adapter(),
    NextDiTAdapter(),
    LuminaNextAdapter(),
    FluxAdapter(),
    Flux2Adapter(),
    ChromaAdapter(),
    QwenImageAdapter(),
    MageFlowAdapter(),
    Ideogram4Adapter(),
    CosmosPredict2Adapter(),
    Krea2Adapter(),
    HunyuanImageAdapter(),
    AuraFlowAdapter(),
    HiDreamAdapter(),
    Kandinsky5Adapter(),
)


def adapter_for(network: nn.Module, model_class: str = "") -> ModelAdapter:
    """The adapter of this network.

    Args:
        network: the network of a model.
        model_class: name by which ComfyUI knows the model, such as "SDXL", for the error; empty if unknown.

    Raises:
        RASError: the network's class, or this variant of the class, is not supported.
    """
    variant = None
    for adapter in ADAPTERS:
        if adapter.matches(network):
            if (variant := adapter.unsupported(network)) is None:
                return adapter
    kind = type(network)
    raise RASError(
        f"{_described(kind, model_class, variant)}, which is not supported{reason(kind.__module__)}.",
        "a family in the README, such as SD3 (MMDiT) or Z-Image (NextDiT).",
        "connect such a model, or remove the node.",
    )


def _described(kind: type, model_class: str, variant: str | None) -> str:
    if model_class:
        end = f", {variant}" if variant else f" (network: {kind.__name__})"
        return f"the model is {model_class}{end}"
    return f"the model's network is {variant or f'{kind.__name__} ({kind.__module__})'}"


def network_of(module: nn.Module) -> nn.Module:
    """The network inside the module that torch.compile returns; any other module is returned unchanged."""
    return getattr(module, "_orig_mod", module)
