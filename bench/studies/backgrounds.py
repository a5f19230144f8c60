"""Metric robustness: does a metric still follow the changes when the background is busier than the subject?

Simple subjects with exact masks are placed on plain and on busy backgrounds. Noise is added to each image, up
to the level from which KSampler starts with denoise 0.6. From this start, one run per metric denoises the
image; each of these runs selects its active tokens by its metric. The result is compared to that of a
converged run from the same start, which is a dense run with very many steps. A metric that measures how busy
a region is, instead of how much the region changes, selects the tokens of a busy background and misses the
subject.

A cell is one sampling configuration that is measured (quality/cells.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ras_core.method.grid import TokenGrid
from ...ras_core.models import adapter_for
from ..common.progress import Progress, say
from ..quality.cells import Cell
from ..quality.figures import masked_psnr, psnr
from ..quality.options import Options
from ..quality.plots import bar_plot
from ..quality.prompts import Prompt
from ..quality.references import CONVERGED_SAMPLER
from ..quality.sampling import Studio
from ..quality.sources import load_source
from .common import publish
from .scenes import KINDS, make_scenes

DENOISE = 0.6
STEPS = 20
RATIO = 0.25


def variants(family: str) -> dict[str, Cell]:
    """The cells to compare."""
    base = Cell(family, "paper", "euler", STEPS, start=2, reset_every=6, ratio=RATIO, starvation=0.1)
    return {
        "dense": Cell(family, steps=STEPS),
        "std, low active (paper)": base,
        "std, high active": replace(base, high_ratio=0.0),
        "l2norm, low active": replace(base, metric="l2norm"),
        "random": replace(base, method="random", starvation=0.0),
        "change": replace(base, method="change", starvation=0.0),
        "multirate": replace(base, method="multirate", sampler="dpmpp_2m", starvation=0.0),
    }


def run(family: str, options: Options, out: Path, artwork: str = "") -> str:
    """Run the study for one family; returns its table as Markdown."""
    scenes = make_scenes(options, artwork)
    options = replace(options, prompts=tuple(Prompt(text) for text in scenes.texts))
    studio = Studio(load_source(family, options), options)
    progress = Progress(len(KINDS) * len(variants(family)), len(KINDS) * len(variants(family)))
    lines: list[list[Any]] = []
    for kind in KINDS:
        latent = invert(studio, scenes.images[kind])
        say(f"reference: {kind} backgrounds")
        target = decoded(studio, converged(studio, latent))
        for name, cell in variants(family).items():
            lines.append([kind, name, *_figures(studio, cell, latent, target, scenes.mask)])
            progress.step(1, f"{kind} background, {name}: PSNR {lines[-1][2]:.2f} dB")
    groups = {line[1]: {} for line in lines}
    for kind, name, quality, *_ in lines:
        groups[name][f"{kind} background"] = quality
    header = [
        "background",
        "metric",
        "PSNR dB",
        "subject dB",
        "background dB",
        "subject active",
        "rest active",
    ]
    labels = ("PSNR to the converged run, dB", f"{family}: {RATIO:.0%} of tokens active, denoise {DENOISE}")
    return publish(
        out, f"backgrounds_{family}", f"Simple subjects on plain and busy backgrounds, {family}",
        [("", header, lines)], lambda path: bar_plot(groups, labels, path), options,
    )  # fmt: skip


def partial_sigmas(studio: Studio, cell: Cell) -> Tensor:
    """Noise levels of the cell's run. The run starts at a lower noise level than a full run, as KSampler does
    with denoise below 1.
    """
    return studio.sigmas(cell, DENOISE)


def converged_sigmas(studio: Studio, first: Tensor) -> Tensor:
    """Noise levels of a converged run that starts at exactly the noise level `first`.

    They are `first` and those noise levels of a full run of `reference_steps` steps that are below `first`.
    """
    every = studio.sigmas(Cell(studio.source.family, steps=studio.options.reference_steps))
    return torch.cat([first[None], every[every < first * (1 - 1e-3)]])


def converged(studio: Studio, latent: Tensor) -> Tensor:
    """Final latents of converged runs. These runs start from `latent`, the images' latents, plus noise."""
    cell = Cell(studio.source.family, sampler=CONVERGED_SAMPLER, steps=STEPS)
    first = partial_sigmas(studio, cell)[0]
    return studio.sample(cell, latent, converged_sigmas(studio, first)).latents


@torch.inference_mode()
def invert(studio: Studio, images: Tensor) -> Tensor:
    """Convert images (n, 3, H, W) to latents; returns the latents on the CPU."""
    parts = images.split(studio.options.batch)
    return torch.cat([studio.source.invert(part).float().cpu() for part in parts])


def decoded(studio: Studio, latents: Tensor) -> Tensor:
    """Convert latents to images; returns the images on the CPU."""
    return torch.cat([images.float().cpu() for _, images in studio.decode(latents)])


def _figures(studio: Studio, cell: Cell, latent: Tensor, target: Tensor, mask: Tensor) -> list[float | None]:
    sampled = studio.sample(cell, latent, partial_sigmas(studio, cell))
    images = decoded(studio, sampled.latents)
    quality = [
        psnr(images, target),
        masked_psnr(images, target, mask),
        masked_psnr(images, target, 1 - mask),
    ]
    figures: list[float | None] = [float(each.mean()) for each in quality]
    if sampled.activity is None:
        return [*figures, None, None]
    weight = _token_mask(studio, mask)  # (n, tokens)
    active = sampled.activity.flatten(1).float()
    subject = float((active * weight).sum() / weight.sum())
    background = float((active * (1 - weight)).sum() / (1 - weight).sum())
    return [*figures, subject, background]


def _token_mask(studio: Studio, mask: Tensor) -> Tensor:
    """The part of each token's area that the subject's mask covers: (n, 1, size, size) -> (n, tokens)."""
    _, height, width = studio.source.latent_shape(studio.options.size)
    patch = adapter_for(studio.source.network).patch_size(studio.source.network)
    pixels = torch.nn.functional.adaptive_avg_pool2d(mask, (height, width))[:, 0]
    return TokenGrid((height, width), patch).pool(pixels)
