"""Cost and K/V cache of networks with the sizes of published models, on the meta device: the numbers of the
table in ras_core/models/README.md.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ras_pack.bench.common.true_sizes import (
    COSMOS_2B,
    FLUX1,
    FLUX2_DEV,
    FLUX2_KLEIN_4B,
    FLUX2_KLEIN_9B,
    QWEN_IMAGE,
)
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.models.cost import expected_speedup
from support.comfy import ROOT
from support.families import FAMILIES
from support.other_families import OTHERS

ALL = FAMILIES | OTHERS
STEPS, DENSE = 28, 6
TOKENS = 4096


@dataclass(frozen=True)
class Size:
    """A published model.

    Attributes:
        row: its name in the table.
        family: name of the tiny family whose configuration is changed to the model's.
        changes: sizes of its network.
        text: rows of text that a prompt of usual length takes in the network.
        frozen: rows of reference images.
    """

    row: str
    family: str
    changes: dict[str, Any]
    text: int
    frozen: int = 0


SIZES = (
    Size("Flux.1 dev", "flux", FLUX1, 512),
    Size("Flux.1 Kontext, a reference of 1024 px", "flux", FLUX1, 512, TOKENS),
    Size("Chroma", "chroma", FLUX1, 512),
    Size("Flux.2 dev", "flux2", FLUX2_DEV, 512),
    Size("Flux.2 dev, a reference of 1024 px", "flux2", FLUX2_DEV, 512, TOKENS),
    Size("Flux.2 Klein 9B", "flux2", FLUX2_KLEIN_9B, 512),
    Size("Flux.2 Klein 9B, a reference of 1024 px", "flux2", FLUX2_KLEIN_9B, 512, TOKENS),
    Size("Flux.2 Klein 4B", "flux2", FLUX2_KLEIN_4B, 512),
    Size("Flux.2 Klein 4B, a reference of 1024 px", "flux2", FLUX2_KLEIN_4B, 512, TOKENS),
    Size("Qwen-Image", "qwen_image", QWEN_IMAGE, 100),
    Size("Qwen-Image-Edit, a reference of 1024 px", "qwen_image", QWEN_IMAGE, 300, TOKENS),
    Size("Mage-Flow", "mage_flow", {**QWEN_IMAGE, "num_layers": 12, "joint_attention_dim": 2560}, 100),
    Size(
        "Ideogram 4", "ideogram4",
        {
            "num_layers": 34, "num_attention_heads": 18, "attention_head_dim": 256,
            "intermediate_size": 12288, "adaln_dim": 512, "llm_features_dim": 53248,
            "mrope_section": (24, 20, 20),
        },
        300,
    ),
    Size("Anima, Cosmos Predict2 2B", "cosmos_predict2", COSMOS_2B, 512),
    Size(
        "Krea 2", "krea2",
        {
            "features": 6144, "tdim": 256, "txtdim": 2560, "heads": 48, "kvheads": 12, "multiplier": 4,
            "layers": 28, "txtlayers": 12, "txtheads": 20, "txtkvheads": 20,
        },
        200,
    ),
    Size(
        "HunyuanImage 2.1 at 2048 px", "hunyuan_image",
        {
            "hidden_size": 3584, "num_heads": 28, "mlp_ratio": 4.0, "depth": 20, "depth_single_blocks": 40,
            "axes_dim": [64, 64], "context_in_dim": 3584,
        },
        200,
    ),
    Size(
        "AuraFlow", "aura_flow",
        {"dim": 3072, "n_layers": 36, "n_double_layers": 4, "n_heads": 12, "global_conddim": 3072,
         "cond_seq_dim": 2048, "max_seq": 4096},
        264,
    ),
    Size(
        "HiDream I1", "hidream",
        {
            "num_layers": 16, "num_single_layers": 32, "attention_head_dim": 128, "num_attention_heads": 20,
            "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4,
            "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
            "llama_layers": [0] * 49,
        },
        384,
    ),
    Size(
        "Kandinsky 5 Image", "kandinsky5",
        {
            "in_text_dim": 3584, "in_text_dim2": 768, "time_dim": 512, "model_dim": 2560, "ff_dim": 10240,
            "num_text_blocks": 2, "num_visual_blocks": 50, "axes_dims": (32, 48, 48),
        },
        256,
    ),
)  # fmt: skip


def line(size: Size) -> str:
    """The line of the table for this model."""
    family = ALL[size.family]
    config = family.config_class({**family.unet_config(), **size.changes, "dtype": torch.bfloat16})
    network = config.get_model({}, prefix="", device=torch.device("meta")).diffusion_model
    adapter = adapter_for(network)
    profile = replace(adapter.cost_profile(network), frozen_rows=size.frozen)
    others = [size.text + size.frozen]
    numbers = adapter.cache_profile(network).counts(TOKENS, others, size.frozen)[0]
    dense = profile.step_flops(TOKENS, TOKENS, size.text)
    without_attention = replace(profile, joint_width=0, image_width=0, cross_width=0)
    linear = without_attention.step_flops(TOKENS, TOKENS, size.text) / dense
    gains = [
        expected_speedup(profile, TOKENS, size.text, [TOKENS] * DENSE + [TOKENS // part] * (STEPS - DENSE))
        for part in (2, 4, 8)
    ]
    speeds = " / ".join(f"{gain:.2f}" for gain in gains)
    flops = f"{dense / 1e12:.1f}" if dense < 1e14 else f"{dense / 1e12:.0f}"
    gib = f"{numbers * 2 / 2**30:.2f}"
    cells = (size.row, size.text, f"{gib} GiB", f"{flops} TFLOP", f"{100 * linear:.0f} %", speeds)
    return f"| {' | '.join(map(str, cells))} |"


def test_every_adapter_has_a_row():
    """For the families of support/other_families.py; one row may be for several of them."""

    def adapters(names):
        return {adapter_for(ALL[name].build().model.diffusion_model).family for name in names}

    assert adapters(OTHERS) <= adapters({size.family for size in SIZES} & ALL.keys())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.row)
def test_the_table_of_the_guide(size):
    if size.family not in ALL:
        pytest.skip("this ComfyUI does not have the family")
    guide = (ROOT / "ras_core" / "models" / "README.md").read_text(encoding="utf-8")
    assert line(size) in guide.splitlines()
