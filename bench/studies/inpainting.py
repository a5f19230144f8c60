"""Compares ways to inpaint at equal cost: runs without RAS, and experimental runs with regional steps. The
measure is the PSNR inside the mask.

The images that are inpainted are sampled from different prompts than those of the inpainting. One part of
each image is inpainted: its left half, or a rectangle in the middle with a quarter or a sixteenth of its
area. All runs start from the same noise. Each has the cost of `default_steps` dense steps divided by the
speed. The reference takes many second-order steps, at noise levels that a plan distributes. The ways with
`on_plan` use noise levels of the plan of the same `speed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...ras_core.config import RASConfig
from ...ras_core.host.measured_runs import simple_levels
from ...ras_core.host.patch import last_trace, patch_model
from ...ras_core.host.plans import FINE_LEVELS
from ...ras_core.host.samplers import multirate_sampler
from ...ras_core.method.family_plans import family_plans
from ...ras_core.method.plan_candidates import shares_for
from ...ras_core.method.sigma_grid import part_of
from ..common.progress import say
from ..quality import references as refs
from ..quality.cells import Cell
from ..quality.figures import masked_psnr
from ..quality.known_tokens import PARTS, mask_of, regional_inpainting
from ..quality.methods import sampler_of
from ..quality.options import Options, digest
from ..quality.plan_cells import step_cost
from ..quality.plots import bar_plot
from ..quality.sampling import Studio, noise_of
from ..quality.sources import load_source
from .common import is_small, publish

DENOISES = (1.0, 0.6)
SPEEDS = ("1.5x", "2x", "3x")
SMALL_SPEEDS = ("2x",)
REFERENCE_STEPS, SMALL_REFERENCE_STEPS = 120, 28
DENSE_PART = 0.5
"""Share of a regional run's cost that is spent on the dense steps at its start."""

OTHERS = 0.6
"""A regional step computes this share of the tokens outside the mask. With 0.4 or less, results were
worse."""

HEADER = (
    "denoise", "mask", "speed", "way", "steps", "cost", "PSNR inside, dB", "over the best plain, dB", "error",
)  # fmt: skip

Shares = tuple[float, ...]


@dataclass(frozen=True)
class Way:
    """One way to inpaint at a given cost.

    Attributes:
        name: name of the way in the table.
        sampler: name of the sampler.
        on_plan: whether the noise levels are those of the plan; if not, those of the scheduler are used.
        kv_cache: format of the K/V cache of a regional run; empty for a run without RAS.
        spread: whether forecasts of K/V rows are corrected by the errors of nearby forecasts (RASConfig).
    """

    name: str
    sampler: str
    on_plan: bool = True
    kv_cache: str = ""
    spread: bool = False


WAYS = (
    Way("simple, dpmpp_2m", "dpmpp_2m", on_plan=False),
    Way("simple, ab2", "ab2", on_plan=False),
    Way("plan, euler", "euler"),
    Way("plan, dpmpp_2m", "dpmpp_2m"),
    Way("plan, ab2", "ab2"),
    Way("regional, ab2, rows kept", "ab2", kv_cache="gpu"),
    Way("regional, ab2, rows forecast", "ab2", kv_cache="forecast"),
    Way("regional, ab2, rows forecast and spread", "ab2", kv_cache="forecast2", spread=True),
)
SMALL_WAYS = (*WAYS[:2], *WAYS[3:5], WAYS[-1])


@dataclass
class Scene:
    """One inpainting task for all prompts: the images, the mask and the value of denoise.

    Attributes:
        studio: the model and its prompts.
        part: name of the mask, in `PARTS`.
        denoise: denoise as in ComfyUI's KSampler.
        given: (n, c, h, w) latents of the images that are inpainted.
    """

    studio: Studio
    part: str
    denoise: float
    given: Tensor

    @property
    def mask(self) -> Tensor:
        return mask_of(self.part, *self.given.shape[-2:])

    def levels(self, density: Shares, steps: int) -> Tensor:
        """The noise levels of a run of `steps` steps over the range of noise levels that `denoise` leaves.
        They are distributed by `density`; if it is empty, they are those of the scheduler.
        """
        full = self.studio.options.default_steps if density else steps
        given = self.studio.sigmas(Cell(self.studio.source.family, steps=full), self.denoise)
        fine = simple_levels(self.studio.source.model, FINE_LEVELS)
        return torch.tensor(part_of(fine, density, steps, given.tolist())) if density else given

    @torch.inference_mode()
    def sample(self, model: Any, sampler: Any, sigmas: Tensor) -> Tensor:
        """Inpaint all images; returns their latents, (n, c, h, w)."""
        studio, parts = self.studio, []
        shape = self.given.shape[1:]
        for batch in studio.batches:
            texts = [studio.options.prompts[row].text for row in batch.rows]
            found = comfy.sample.sample_custom(
                model, torch.stack([noise_of(text, 0, shape) for text in texts]), studio.cfg, sampler, sigmas,
                batch.positive, batch.negative, self.given[batch.rows], noise_mask=self.mask,
                disable_pbar=True, seed=0,
            )  # fmt: skip
            parts.append(found.float().cpu())
        return studio.in_order(parts)

    def images(self, latents: Tensor) -> Tensor:
        return torch.cat([images.float().cpu() for _, images in self.studio.decode(latents)])

    def inside(self, latents: Tensor, target: Tensor) -> Tensor:
        """The PSNR in dB of each decoded latent against `target`, inside the mask only: (n,)."""
        scale = self.studio.options.size // self.given.shape[-1]
        mask = self.mask.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        return masked_psnr(self.images(latents), target, mask.expand(len(latents), -1, -1, -1))


def run(
    family: str,
    options: Options,
    out: Path,
    parts: Sequence[str] = tuple(PARTS),
    denoises: Sequence[float] = DENOISES,
) -> str:
    """Run the study for one family, with the masks `parts` and the values `denoises`. Returns its table."""
    small = is_small(options)
    studio = Studio(load_source(family, options), options)
    lines: list[list[Any]] = []
    for denoise in denoises:
        for part in parts:
            scene = Scene(studio, part, denoise, _originals(studio))
            lines += _lines(scene, SMALL_WAYS if small else WAYS, small)
    bars: dict[str, dict[str, float]] = {}
    for denoise, part, speed, way, _, _, quality, *_ in lines:
        bars.setdefault(way, {})[f"{part}, {denoise:g}, {speed}"] = quality
    labels = ("PSNR inside the mask, dB", f"{family}: inpainting at equal cost")
    return publish(
        out, f"inpaint_{family}", f"Inpainting, {family}, {len(options.prompts)} images",
        [("", HEADER, lines)],
        lambda path: bar_plot(bars, labels, path), options,
    )  # fmt: skip


def _lines(scene: Scene, ways: tuple[Way, ...], small: bool) -> list[list[Any]]:
    """The table's lines for one mask and one value of denoise. At each speed, every way is compared with the
    best of the ways without RAS.
    """
    density = family_plans(scene.studio.source.family).best("2x", "dpmpp_2m", plain=True).density
    steps = SMALL_REFERENCE_STEPS if small else REFERENCE_STEPS
    levels = scene.levels(density, steps)
    target = scene.images(_kept(scene, ("reference", levels), lambda: _plain(scene, "ab2", levels)))
    lines = []
    for speed in SMALL_SPEEDS if small else SPEEDS:
        found = {way: _measured(scene, way, speed, target) for way in ways}
        best = max((found[way][-1] for way in ways if not way.kv_cache), key=lambda figures: figures.mean())
        for way, (count, cost, quality) in found.items():
            gain = quality - best
            error = float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else None
            values = [float(quality.mean()), float(gain.mean()), error]
            lines.append([scene.denoise, scene.part, speed, way.name, count, cost, *values])
            say(f"{scene.part}, denoise {scene.denoise}, {speed}, {way.name}: {values[0]:.2f} dB")
    return lines


def _measured(scene: Scene, way: Way, speed: str, target: Tensor) -> tuple[int, float, Tensor]:
    """Inpaint in one way at one speed. Returns the number of steps, the cost in dense steps (estimated for
    SD3-medium), and the PSNR of each image inside the mask.
    """
    plan = family_plans(scene.studio.source.family).best(
        speed, "euler" if way.sampler == "euler" else "dpmpp_2m", plain=True
    )
    budget = scene.studio.options.default_steps / float(speed.removesuffix("x"))
    shares = (1.0,) * round(budget)
    if way.kv_cache:
        inside = PARTS[scene.part]
        share = inside + OTHERS * (1 - inside)
        shares = shares_for(budget, share, DENSE_PART, step_cost) or shares
    levels = scene.levels(plan.density if way.on_plan else (), len(shares))
    if way.kv_cache:
        latents = _kept(scene, (way.name, shares, levels), lambda: _regional(scene, way, shares, levels))
    else:
        latents = _kept(scene, (way.name, levels), lambda: _plain(scene, way.sampler, levels))
    cost = sum(1.0 if share == 1 else step_cost(share) for share in shares)
    return len(shares), cost, scene.inside(latents, target)


def _plain(scene: Scene, sampler: str, levels: Tensor) -> Tensor:
    return scene.sample(scene.studio.source.model, sampler_of(sampler), levels)


def _regional(scene: Scene, way: Way, shares: Shares, levels: Tensor) -> Tensor:
    settings = RASConfig(shares=shares, corrections=True, kv_cache=way.kv_cache, spread=way.spread)
    model = patch_model(scene.studio.source.model, settings)
    with regional_inpainting(scene.mask):
        latents = scene.sample(model, multirate_sampler(way.sampler), levels)
    if notes := last_trace(model).notes:
        say(f"{way.name}: {'; '.join(notes)}")
    return latents


def _originals(studio: Studio) -> Tensor:
    """Latents of the images that are inpainted. Each image is sampled from the prompt that precedes its own
    prompt in the list, and from another noise than that of the inpainting.
    """
    cell = Cell(studio.source.family, sampler="dpmpp_2m", steps=14, seed=7)
    name = refs.reference_name(
        refs.Reference(cell.family, cell.seed, cell.sampler, cell.steps),
        studio.options,
        studio.source.identity,
    )
    return _on_disk(studio, name, lambda: studio.sample(cell).latents).roll(1, 0)


def _kept(scene: Scene, recipe: tuple, make: Callable[[], Tensor]) -> Tensor:
    """The latents of a run, from a file if one exists; otherwise `make` computes them and they are saved. The
    file's name is a digest of everything that the latents depend on. So an interrupted study can be
    continued.
    """
    studio = scene.studio
    values = [value.tolist() if isinstance(value, Tensor) else value for value in recipe]
    about = [values, scene.part, scene.denoise, studio.source.identity, studio.options.identity()]
    return _on_disk(studio, f"{studio.source.family}-inpaint-{digest(about)}.safetensors", make)


def _on_disk(studio: Studio, name: str, make: Callable[[], Tensor]) -> Tensor:
    folder = Path(studio.options.cache)
    if (found := refs.load_latents(folder, name)) is None:
        found = make()
        refs.save_latents(folder, name, found)
    return found
