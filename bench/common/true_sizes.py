"""Layer sizes of published models, by the names of their settings in ComfyUI's networks.

`shapes` builds these networks for measurements of speed. A test computes their cost and the size of their
K/V cache.
"""

from __future__ import annotations

FLUX1 = {
    "hidden_size": 3072, "num_heads": 24, "mlp_ratio": 4.0, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "context_in_dim": 4096,
}  # fmt: skip
"""Flux.1 dev and Kontext, and Chroma."""

_FLUX2 = {"mlp_ratio": 3.0, "axes_dim": [32, 32, 32, 32]}
FLUX2_DEV = {**_FLUX2, "hidden_size": 6144, "num_heads": 48, "depth": 8, "depth_single_blocks": 48}
FLUX2_KLEIN_9B = {**_FLUX2, "hidden_size": 4096, "num_heads": 32, "depth": 8, "depth_single_blocks": 24}
FLUX2_KLEIN_4B = {**_FLUX2, "hidden_size": 3072, "num_heads": 24, "depth": 5, "depth_single_blocks": 20}

QWEN_IMAGE = {
    "num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
"""Qwen-Image and Qwen-Image-Edit."""

COSMOS_2B = {"model_channels": 2048, "num_blocks": 28, "num_heads": 16, "crossattn_emb_channels": 1024}
"""Anima and Cosmos Predict2 2B."""
