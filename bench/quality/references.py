"""Reference trajectories, sampled once for a model, its prompts and a seed, and kept on disk."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from .cells import Cell
from .options import Options, digest

log = logging.getLogger(__name__)

CONVERGED_SAMPLER = "dpmpp_2m"


@dataclass(frozen=True)
class Reference:
    """A dense run that other cells are compared with."""

    family: str
    seed: int
    sampler: str
    steps: int

    @property
    def cell(self) -> Cell:
        return Cell(self.family, sampler=self.sampler, steps=self.steps, seed=self.seed)


def converged_of(cell: Cell, options: Options) -> Reference:
    """The trajectory to which the cell converges as the number of steps grows."""
    return Reference(cell.family, cell.seed, CONVERGED_SAMPLER, options.reference_steps)


def dense_of(cell: Cell, options: Options) -> Reference | None:
    """The run that the cell speeds up: the same sampler, dense, the default number of steps.

    None for samplers that occur only as baselines: one dense run each would cost more than it is worth.
    """
    if not cell.order:
        return None
    return Reference(cell.family, cell.seed, cell.sampler, options.default_steps)


def needed(cells: list[Cell], options: Options) -> list[Reference]:
    """The references of these cells, each once, in order."""
    found = [make(cell, options) for cell in cells for make in (converged_of, dense_of)]
    return list(dict.fromkeys(each for each in found if each is not None))


def reference_name(reference: Reference, options: Options, identity: str, extra: Any = None) -> str:
    """File name of a reference; it changes with everything that its contents depend on."""
    texts = [prompt.text for prompt in options.prompts]
    recipe = [
        asdict(reference), identity, texts, options.size, options.cfg, options.scheduler, options.dtype,
        options.device, extra,
    ]  # fmt: skip
    return f"{reference.family}-{reference.sampler}-{reference.steps}-{digest(recipe)}.safetensors"


def load_latents(folder: Path, name: str) -> Tensor | None:
    """Saved latents (n, c, h, w) of an earlier run; None if there are none."""
    path = folder / name
    return load_file(path)["latents"] if path.is_file() else None


def save_latents(folder: Path, name: str, latents: Tensor) -> None:
    """Save latents atomically: the file is complete or absent, even if two processes write it."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{name}.{os.getpid()}"
    save_file({"latents": latents.contiguous()}, scratch)
    scratch.replace(folder / name)
