"""Reference runs: dense runs whose final latents are sampled once for each setting and kept on disk."""

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
    """A dense run whose images are the reference that the images of other cells are compared with."""

    family: str
    seed: int
    sampler: str
    steps: int

    @property
    def cell(self) -> Cell:
        return Cell(self.family, sampler=self.sampler, steps=self.steps, seed=self.seed)


def converged_of(cell: Cell, options: Options) -> Reference:
    """The reference for the limit that a cell converges to with more steps: a dense run of many steps."""
    return Reference(cell.family, cell.seed, CONVERGED_SAMPLER, options.reference_steps)


def dense_of(cell: Cell, options: Options) -> Reference | None:
    """The reference run that the cell speeds up: the cell's sampler, dense, with the default number of steps.

    None for samplers that only baselines use: a dense run for each of them would take more time than its
    figure is worth.
    """
    if not cell.order:
        return None
    return Reference(cell.family, cell.seed, cell.sampler, options.default_steps)


def needed(cells: list[Cell], options: Options) -> list[Reference]:
    """The references that these cells are compared with, each once, in the order of the cells."""
    found = [make(cell, options) for cell in cells for make in (converged_of, dense_of)]
    return list(dict.fromkeys(each for each in found if each is not None))


def reference_name(reference: Reference, options: Options, identity: str, extra: Any = None) -> str:
    """File name of a reference, with a hash of everything that the contents of the file depend on."""
    texts = [prompt.text for prompt in options.prompts]
    recipe = [
        asdict(reference), identity, texts, options.size, options.cfg, options.scheduler, options.dtype,
        options.device, extra,
    ]  # fmt: skip
    return f"{reference.family}-{reference.sampler}-{reference.steps}-{digest(recipe)}.safetensors"


def load_latents(folder: Path, name: str) -> Tensor | None:
    """Latents (n, c, h, w) that an earlier run saved in this file; None if the file does not exist."""
    path = folder / name
    return load_file(path)["latents"] if path.is_file() else None


def save_latents(folder: Path, name: str, latents: Tensor) -> None:
    """Save latents so that the file is always complete or absent, even if two processes write it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{name}.{os.getpid()}"
    save_file({"latents": latents.contiguous()}, scratch)
    scratch.replace(folder / name)
