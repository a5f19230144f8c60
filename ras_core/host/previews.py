"""Small images of latents, for the live view of a ComfyUI that makes no previews itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from torch import Tensor
from torch.nn import functional

LONGEST_SIDE = 192  # pixels; an image of 1536 x 1536 pixels usually has a latent of this size


def makes_previews() -> bool:
    """Whether ComfyUI makes previews in this run. On a fresh ComfyUI it makes none."""
    return args.preview_method != LatentPreviewMethod.NoPreviews


def images_of(latent_format: Any) -> LatentImages | None:
    """Makes the images of latents in a latent format of ComfyUI; None if the format has no RGB factors."""
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:
        return None
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    return LatentImages(factors, bias, getattr(latent_format, "latent_rgb_factors_reshape", None))


def has_previewer(latent_format: Any) -> bool:
    """Whether ComfyUI has a decoder that can make previews of this latent format."""
    return getattr(latent_format, "taesd_decoder_name", None) is not None


class LatentImages:
    """Maps the channels of each latent pixel linearly to red, green and blue.

    Args:
        factors: (c, 3), one row for each channel.
        bias: (3,), or None for 0.
        reshape: applied to a latent before the map, for latents whose channels are those of several pixels.
    """

    def __init__(
        self,
        factors: Sequence[Sequence[float]],
        bias: Sequence[float] | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
    ):
        self._weight = torch.tensor(factors, dtype=torch.float32).T
        self._bias = None if bias is None else torch.tensor(bias, dtype=torch.float32)
        self._reshape = reshape

    def start(self, latent: Tensor) -> Transfer:
        """Compute the image of the first latent of a batch, (b, c, H, W) or (b, c, T, H, W), of the latter
        the first frame, and start to copy it to the CPU. On an NVIDIA or AMD GPU, this does not wait.
        """
        if self._reshape is not None:
            latent = self._reshape(latent)
        latent = latent[0] if latent.ndim == 4 else latent[0, :, 0]
        if self._weight.device != latent.device:
            self._weight = self._weight.to(latent.device, non_blocking=True)
            if self._bias is not None:
                self._bias = self._bias.to(latent.device, non_blocking=True)
        rgb = functional.linear(latent.float().movedim(0, -1), self._weight, self._bias)
        return Transfer(((_shrunk(rgb) + 1) * 127.5).clamp(0, 255).to(torch.uint8))


def _shrunk(image: Tensor) -> Tensor:
    """An image (H, W, 3) with sides of at most LONGEST_SIDE; smaller images are unchanged."""
    step = -(-max(image.shape[:2]) // LONGEST_SIDE)
    return image[::step, ::step]


class Transfer:
    """An image, (H, W, 3) uint8, on its way to the CPU."""

    def __init__(self, image: Tensor):
        self._image = image.contiguous().to("cpu", non_blocking=image.is_cuda)
        self._event = torch.cuda.Event() if image.is_cuda else None
        if self._event is not None:
            self._event.record()

    def read(self, wait: bool) -> np.ndarray | None:
        """The image; None if it has not arrived and `wait` is false."""
        if self._event is not None and not self._event.query():
            if not wait:
                return None
            self._event.synchronize()
        return self._image.numpy()
