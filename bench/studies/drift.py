"""Cache drift: the error of the cached tokens' keys, values and attention outputs.

A long run is sampled twice: once with error resets (single dense steps between the regional ones, which clear
the errors of the cached tokens), and once without. At some regional steps of each run, the network is also
evaluated densely, at exactly the same latent and noise level. The cached tokens' keys, values and attention
outputs in the run are then compared with those of the dense evaluation. The study reports their relative
error, averaged over all attentions of the main blocks (those that process only the active tokens in regional
steps). The attention output of a cached token in the run is the one from the last step in which the token was
active.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...ras_core.method.grid import TokenGrid
from ...ras_core.models import adapter_for
from ..common.progress import say
from ..quality.cells import Cell
from ..quality.engine import Engine
from ..quality.figures import psnr
from ..quality.methods import prepare_model, sampler_of
from ..quality.options import Options
from ..quality.plots import line_plot
from ..quality.references import converged_of
from ..quality.sampling import Studio
from .common import publish
from .probe import Place, Probe, Seen

STEPS = 100
RATIO = 0.25
IMAGES = 8
"""Number of images: only a few, since the keys and values of every block are kept in memory."""
LOOKS = 24
RESETS = {"resets every 6": 6, "no resets": 0}
PARTS = ("key", "value", "output")


@dataclass
class Look:
    """A regional step of the run that is examined.

    Attributes:
        step: index of the step in the run.
        state: the latent at the start of the step, (b, c, h, w).
        seen: keys, values and outputs of each attention in the step; emptied when `errors` is filled.
        cached: (bb, n) bool, the tokens that were cached in the step.
        sigma: noise level at the start of the step.
        age: mean number of steps since the cached tokens were last active.
        errors: for "key", "value" and "output": the relative error of the cached tokens in each attention.
    """

    step: int
    state: Tensor
    seen: dict[Place, Seen]
    cached: Tensor
    sigma: float = 0.0
    age: float = 0.0
    errors: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})


def run(family: str, options: Options, out: Path) -> str:
    """Run the study for one family; returns its tables as Markdown."""
    options = replace(options, prompts=options.prompts[:IMAGES], batch=IMAGES)
    engine = Engine(options)
    studio = engine.studio(family)
    lines: list[list[Any]] = []
    curves: dict[str, tuple[list[float], list[float]]] = {}
    qualities = []
    for name, reset in RESETS.items():
        cell = Cell(
            family, "multirate", "dpmpp_2m", STEPS, start=4, reset_every=reset, ratio=RATIO
        )  # fmt: skip
        looks, latents = watch(studio, cell)
        compare(studio, looks)
        target = torch.cat(engine.decoded(converged_of(cell, options)))
        images = torch.cat([images for _, images in studio.decode(latents)])
        qualities.append([name, float(psnr(images, target).mean())])
        say(f"{name}: {len(looks)} steps examined, PSNR of the final images {qualities[-1][1]:.2f} dB")
        for look in looks:
            means = [sum(look.errors[part]) / len(look.errors[part]) for part in PARTS]
            lines.append([name, look.step, look.sigma, look.age, *means])
            for part, value in zip(PARTS, means, strict=True):
                x, y = curves.setdefault(f"{part}, {name}", ([], []))
                x.append(look.step)
                y.append(value)
    tables = [
        (
            "Relative error of cached tokens; age is the mean number of steps since they were active:",
            ["run", "step", "sigma", "age", *PARTS],
            lines,
        ),
        ("Final images of these runs:", ["run", "PSNR dB"], qualities),
    ]
    labels = (f"step of {STEPS}", "relative error of cached tokens", f"{family}, {RATIO:.0%} active")
    return publish(
        out, f"drift_{family}", f"Cache drift, {family}", tables,
        lambda path: line_plot(curves, labels, path), options,
    )  # fmt: skip


def watch(studio: Studio, cell: Cell) -> tuple[list[Look], Tensor]:
    """Sample the first batch of images with the cell's settings. Returns some of the regional steps, with
    their attentions, and the final latents.
    """
    probe, batch = Probe(studio.source, grid_of(studio)), studio.batches[0]
    regional = [i for i, share in enumerate(cell.planned_shares()) if share < 1.0]
    wanted = set(regional[:: max(len(regional) // LOOKS, 1)])
    looks: list[Look] = []
    age: Tensor | None = None

    def keep(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        nonlocal age
        probe.begin_step()
        cached = probe.cached
        age = None if cached is None else (cached if age is None else (age + 1) * cached)
        if step in wanted and cached is not None:
            mean_age = float(age[cached].float().mean())
            looks.append(Look(step, x.clone(), dict(probe.seen), cached.clone(), age=mean_age))

    sigmas = studio.sigmas(cell)
    with probe.attached(prepare_model(studio.source.model, cell)) as model:
        latents = studio.sample_batch(
            model, sampler_of(cell.sampler), sigmas, batch, cell.seed, callback=keep
        )
    for look in looks:
        look.sigma = float(sigmas[look.step])
    return looks, latents


def compare(studio: Studio, looks: list[Look]) -> None:
    """Evaluate the network densely at the latent and noise level of each step, and fill in the step's
    errors.
    """
    probe, batch = Probe(studio.source, grid_of(studio)), studio.batches[0]

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **kwargs: Any) -> Tensor:
        for look in looks:
            probe.begin_step()
            model(look.state, x.new_full((x.shape[0],), look.sigma), **extra_args)
            _fill(look, probe.seen)
            look.seen = {}
        return x

    sigmas = studio.sigmas(Cell(studio.source.family, steps=2))
    with probe.attached(studio.source.model) as model:
        studio.sample_batch(model, comfy.samplers.KSAMPLER(sampler), sigmas, batch, 0)


def grid_of(studio: Studio) -> TokenGrid:
    """The token grid of the images that this studio (a model with encoded prompts) samples."""
    network = studio.source.network
    _, height, width = studio.source.latent_shape(studio.options.size)
    return TokenGrid((height, width), adapter_for(network).patch_size(network))


def _fill(look: Look, dense: dict[Place, Seen]) -> None:
    for place, stale in look.seen.items():
        for part in PARTS:
            look.errors[part].append(relative(getattr(stale, part), getattr(dense[place], part), look.cached))


def relative(stale: Tensor, exact: Tensor, rows: Tensor) -> float:
    """Relative L2 error of `stale` against `exact`, both (bb, n, d), over the tokens in the mask `rows`, (bb,
    n).
    """
    return float((stale - exact)[rows].float().norm() / exact[rows].float().norm())
