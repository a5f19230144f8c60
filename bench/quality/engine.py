"""Measure a cell: sample its images and compute its row of the results table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ras_core.method.grid import TokenGrid
from ...ras_core.models import adapter_for
from . import references as refs
from .cells import Cell
from .costs import cost_reduction, sd3_cost_reduction
from .features import FeatureNet, Features, distances
from .figures import psnr, relative_error, ssim
from .grids import STRIP, save_strip
from .methods import sampler_of
from .options import Options
from .real import real_halves
from .sampling import Sampled, Studio
from .sources import load_source
from .weighted_figures import PLUGINS, Plugin

log = logging.getLogger(__name__)

KEEP_BYTES = 1 << 30


class Engine:
    """Measures cells in this process.

    An engine holds the model and the references of one model family at a time.
    """

    def __init__(self, options: Options, pictures: Path | None = None):
        self.options = options
        self._pictures = pictures
        self._studio: Studio | None = None
        self._decoded: dict[refs.Reference, list[Tensor]] = {}
        self._given: dict[refs.Reference, Tensor] = {}
        self._net: FeatureNet | None = None
        self._real: tuple[Features, Features] | None = None
        self._plugins: list[Plugin] | None = None

    def studio(self, family: str) -> Studio:
        """A family's model with all prompts encoded; loaded on first use and warmed up by one dense step."""
        if self._studio is None or self._studio.source.family != family:
            self._studio = None
            self._decoded.clear()
            self._studio = self._open(family)
            self._prepare_figures()
            self._warm_up(self._studio)
        return self._studio

    def reference(self, reference: refs.Reference) -> Tensor:
        """Latents (n, c, h, w) of a reference run.

        The latents are those that another process gave, or else those in the cache folder, or sampled now.
        """
        if reference in self._given:
            return self._given[reference]
        studio = self.studio(reference.family)
        folder = Path(self.options.cache)
        name = refs.reference_name(reference, self.options, studio.source.identity)
        latents = refs.load_latents(folder, name)
        if latents is None:
            latents = studio.sample(reference.cell).latents
            refs.save_latents(folder, name, latents)
        return latents

    def give(self, reference: refs.Reference, latents: Tensor) -> None:
        """Use these latents, sampled by another process, for the reference instead of sampling them here."""
        self._given[reference] = latents

    def row(self, cell: Cell) -> dict[str, Any]:
        """Sample the images of one cell and return its row of the results table, by column name."""
        studio = self.studio(cell.family)
        converged = refs.converged_of(cell, self.options)
        dense = refs.dense_of(cell, self.options)
        target = self.reference(converged)
        sampled = studio.sample(cell)
        row = {"key": cell.key, **vars(cell), "order": cell.order, "images": len(sampled.latents)}
        row |= self._costs(studio, sampled, cell)
        row["latent_error"] = float(relative_error(sampled.latents, target).mean())
        row |= self._picture_figures(studio, sampled.latents, converged, dense, cell)
        row["notes"] = "; ".join(sampled.notes)
        return row

    def decoded(self, reference: refs.Reference) -> list[Tensor]:
        """The decoded images of a reference, as a list of batches, kept for later cells.

        If the images would take more than 1 GiB in float32, they are kept in float16. The rounding to float16
        limits a PSNR to 79 dB, far above the PSNRs that cells reach.
        """
        if reference not in self._decoded:
            latents = self.reference(reference)
            studio = self.studio(reference.family)
            many = 12 * len(latents) * self.options.size**2 > KEEP_BYTES
            dtype = torch.float16 if many else torch.float32
            self._decoded[reference] = [pictures.to(dtype) for _, pictures in studio.decode(latents)]
        return self._decoded[reference]

    def _open(self, family: str) -> Studio:
        return Studio(load_source(family, self.options), self.options)

    @staticmethod
    def _warm_up(studio: Studio) -> None:
        """Sample one step, so that loading and tuning of kernels do not add to the time of the first cell."""
        sigmas = studio.sigmas(Cell(studio.source.family, steps=1))
        studio.sample_batch(studio.source.model, sampler_of("euler"), sigmas, studio.batches[0], 0)

    def _costs(self, studio: Studio, sampled: Sampled, cell: Cell) -> dict[str, Any]:
        network = studio.source.network
        adapter = adapter_for(network)
        _, height, width = studio.source.latent_shape(self.options.size)
        n_tokens = TokenGrid((height, width), adapter.patch_size(network)).n
        profile, default = adapter.cost_profile(network), self.options.default_steps
        return {
            "evaluations": sum(share > 0 for share in sampled.shares),
            "token_share": sum(map(mul, sampled.shares, sampled.work)) / cell.steps,
            "cost_sd3": sd3_cost_reduction(sampled.shares, default, sampled.work),
            "cost_own": cost_reduction(
                profile, n_tokens, sampled.text_rows, sampled.shares, default, sampled.work
            ),
            "seconds": sampled.seconds,
        }

    def _picture_figures(
        self,
        studio: Studio,
        latents: Tensor,
        converged: refs.Reference,
        dense: refs.Reference | None,
        cell: Cell,
    ) -> dict[str, Any]:
        targets, dense_ones = self.decoded(converged), None if dense is None else self.decoded(dense)
        texts = [prompt.text for prompt in self.options.prompts]
        quality, closeness, likeness, features = [], [], [], []
        for number, (part, pictures) in enumerate(studio.decode(latents)):
            quality.append(psnr(pictures, targets[number]))
            likeness.append(ssim(pictures, targets[number]))
            if dense_ones is not None:
                closeness.append(psnr(pictures, dense_ones[number]))
            if self._net is not None:
                features.append(self._net(pictures))
            for plugin in self._plugins or ():
                plugin.add(pictures, targets[number], texts[part])
            if number == 0 and self._pictures is not None:
                save_strip(self._pictures / f"{cell.key}.png", pictures[:STRIP])
        values = torch.cat(quality)
        figures = {
            "psnr": float(values.mean()),
            "psnr_sem": float(values.std() / len(values) ** 0.5) if len(values) > 1 else None,
            "ssim": None if likeness[0] is None else float(torch.cat(likeness).mean()),
            "psnr_dense": float(torch.cat(closeness).mean()) if closeness else None,
        }
        if features:
            figures |= distances(Features.joined(features), self._real)
        return figures | {plugin.column: plugin.value() for plugin in self._plugins or ()}

    def _prepare_figures(self) -> None:
        """Load the networks that quality figures need and compute the features of the real images.

        The feature network of FD-EffLite0 is loaded if there are real images, and the networks of LPIPS, CLIP
        score and FID if --with names these figures. Only the first call does anything.
        """
        if self._plugins is not None:
            return
        options, device = self.options, self._studio.source.device
        if options.real:
            self._net = FeatureNet(device)
            halves = self._real_pictures()
            self._real = tuple(Features.joined(self._net(batch) for batch in half) for half in halves)
        self._plugins = [
            PLUGINS[name](path, device, self._real_pictures() if options.real else ())
            for name, path in options.plugins
        ]

    def _real_pictures(self) -> Sequence[Any]:
        options = self.options
        return real_halves(Path(options.real), options.size, options.batch)
