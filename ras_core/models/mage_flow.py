"""The adapter for Mage-Flow, whose network consists of Qwen-Image's blocks."""

from __future__ import annotations

from .qwen_image import QwenImageAdapter


class MageFlowAdapter(QwenImageAdapter):
    """Like Qwen-Image with one latent pixel for each token, latents without a time axis, and no modulation of
    its own for the rows of reference images.
    """

    family = "Mage-Flow"
    classes = ("mage_flow.model.MageFlowTransformer2DModel",)
