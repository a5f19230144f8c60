"""The quality figures of a cell that need nothing but tensors: no feature network, no weights."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

PSNR_CEILING = 100.0
"""Largest PSNR in dB. For identical images it replaces an infinite PSNR, so that means stay finite."""


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """PSNR of each image against its reference, in dB: two (n, 3, H, W) RGB tensors in [0, 1] -> (n,)."""
    error = (pictures.float() - reference.float()).square().mean(dim=(1, 2, 3))
    return (-10.0 * error.clamp_min(1e-30).log10()).clamp_max(PSNR_CEILING)


def ssim(pictures: Tensor, reference: Tensor) -> Tensor | None:
    """SSIM of each image against its reference: two (n, 3, H, W) RGB tensors in [0, 1] -> (n,).

    Computed by the package pytorch-msssim; None if that is not installed.
    """
    if find_spec("pytorch_msssim") is None:
        return None
    package = import_module("pytorch_msssim")
    return package.ssim(pictures.float(), reference.float(), data_range=1.0, size_average=False)


def masked_psnr(pictures: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """PSNR of each image in dB, with each pixel's error weighted by a mask. The result is (n,).

    `pictures` and `reference` are (n, 3, H, W) and `mask` is (n, 1, H, W), all in [0, 1].
    """
    error = (pictures.float() - reference.float()).square().mean(dim=1, keepdim=True) * mask
    mean = error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1e-9)
    return (-10.0 * mean.clamp_min(1e-30).log10()).clamp_max(PSNR_CEILING)


def relative_error(latents: Tensor, reference: Tensor) -> Tensor:
    """Relative L2 error |x - x_ref| / |x_ref| of each latent: two (n, c, H, W) tensors -> (n,)."""
    return (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between the Gaussians fitted to two sets of features: (n, d), (m, d).

    Let A be the centred features of the first set, divided by sqrt(n - 1), and B those of the second set,
    divided by sqrt(m - 1). Then the covariances are A'A and B'B, and the trace of the square root of their
    product equals the nuclear norm of A B'. In this form the distance is exact, even for fewer images than
    features, and no matrix square root is needed.
    """
    a, b = a.double(), b.double()
    gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    left, right = (x - x.mean(dim=0) for x in (a, b))
    left, right = left / (len(a) - 1) ** 0.5, right / (len(b) - 1) ** 0.5
    root = torch.linalg.matrix_norm(left @ right.T, ord="nuc")
    return float(gap + left.square().sum() + right.square().sum() - 2 * root)
