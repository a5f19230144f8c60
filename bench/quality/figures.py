"""The figures of a cell that can be computed from tensors alone."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

PSNR_CEILING = 100.0
"""PSNR of identical images in dB, so that means stay finite."""


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """PSNR of each image in dB: (n, 3, H, W) RGB in [0, 1] each -> (n,)."""
    error = (pictures.float() - reference.float()).square().mean(dim=(1, 2, 3))
    return (-10.0 * error.clamp_min(1e-30).log10()).clamp_max(PSNR_CEILING)


def ssim(pictures: Tensor, reference: Tensor) -> Tensor | None:
    """SSIM of each image by the package pytorch-msssim: (n, 3, H, W) RGB in [0, 1] each -> (n,).

    None where the package is missing.
    """
    if find_spec("pytorch_msssim") is None:
        return None
    package = import_module("pytorch_msssim")
    return package.ssim(pictures.float(), reference.float(), data_range=1.0, size_average=False)


def masked_psnr(pictures: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """PSNR in dB over the pixels weighted by the mask (n, 1, H, W), 0 to 1: (n,)."""
    error = (pictures.float() - reference.float()).square().mean(dim=1, keepdim=True) * mask
    mean = error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1e-9)
    return (-10.0 * mean.clamp_min(1e-30).log10()).clamp_max(PSNR_CEILING)


def relative_error(latents: Tensor, reference: Tensor) -> Tensor:
    """|x - x_ref| / |x_ref| of each latent: (n, c, H, W) -> (n,)."""
    return (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features: (n, d), (m, d).

    With centred features A and B over sqrt(n - 1) and sqrt(m - 1), the covariances are A'A and B'B, and the
    trace of the root of their product is the nuclear norm of A B'. This is exact, even with fewer images
    than features, and needs no matrix square root.
    """
    a, b = a.double(), b.double()
    gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    left, right = (x - x.mean(dim=0) for x in (a, b))
    left, right = left / (len(a) - 1) ** 0.5, right / (len(b) - 1) ** 0.5
    root = torch.linalg.matrix_norm(left @ right.T, ord="nuc")
    return float(gap + left.square().sum() + right.square().sum() - 2 * root)
