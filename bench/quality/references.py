"""Trajectories to compare with, made once for a model, its prompts and a seed, and kept on disk."""

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
    """A dense run that others are compared with."""

    family: str
    seed: int
    sampler: str
    steps: int

    @property
    def cell(self) -> Cell:
        return Cell(self.family, sampler=self.sampler, steps=self.steps, seed=self.seed)


def converged_of(cell: Cell, options: Options) -> Reference:
    """The trajectory that the cell would reach with steps without number."""
    return Reference(cell.family, cell.seed, CONVERGED_SAMPLER, options.reference_steps)


def dense_of(cell: Cell, options: Options) -> Reference | None:
    """The run that the cell speeds up: the same sampler, dense, the default number of steps.

    None for samplers that only stand among the baselines: one dense run each would cost more than it tells.
    """
    if not cell.order:
        return None
    return Reference(cell.family, cell.seed, cell.sampler, options.default_steps)


def needed(cells: list[Cell], options: Options) -> list[Reference]:
    """All references of some cells, each once, in order."""
    found = [make(cell, options) for cell in cells for make in (converged_of, dense_of)]
    return list(dict.fromkeys(each for each in found if each is not None))


def reference_name(reference: Reference, options: Options, identity: str, extra: Any = None) -> str:
    """File name of a reference: changes with everything that decides its contents."""
    texts = [prompt.text for prompt in options.prompts]
    recipe = [
        asdict(reference), identity, texts, options.size, options.cfg, options.scheduler, options.dtype,
        options.device, extra,
    ]  # fmt: skip
    return f"{reference.family}-{reference.sampler}-{reference.steps}-{digest(recipe)}.safetensors"


def load_latents(folder: Path, name: str) -> Tensor | None:
    """(n, c, h, w) of an earlier run; None where there is none."""
    path = folder / name
    return load_file(path)["latents"] if path.is_file() else None


def save_latents(folder: Path, name: str, latents: Tensor) -> None:
    """Keep latents; the file appears whole or not at all, also when two processes write it."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{name}.{os.getpid()}"
    save_file({"latents": latents.contiguous()}, scratch)
    scratch.replace(folder / name)
