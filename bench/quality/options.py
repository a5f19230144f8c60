"""Options of a command line that apply to all of its cells."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .prompts import Prompt

NOT_IN_RESULTS = ("cache", "real", "batch", "threads")
"""Options that decide where or how fast the cells run, and change the figures only by rounding."""


@dataclass(frozen=True)
class Options:
    """Settings of a measurement.

    Attributes:
        prompts: one image is sampled for each.
        size: width and height of the images, pixels.
        cfg: guidance scale; 0 for the source's default.
        scheduler: ComfyUI's name of the scheduler.
        batch: images sampled together.
        default_steps: a dense run with this many steps has cost 1.
        reference_steps: steps of the converged trajectory.
        device, dtype, threads: as in setup.start.
        weights: folder of the demo models' weights; empty for the pack's own.
        checkpoint: a user's model file; empty for none.
        cache: folder for converged trajectories.
        real: folder of real images for the Frechet distance; empty for none.
        plugins: further figures, by name (weighted_figures.py), each with the path of its weights.
    """

    prompts: tuple[Prompt, ...]
    size: int = 512
    cfg: float = 0.0
    scheduler: str = "simple"
    batch: int = 64
    default_steps: int = 28
    reference_steps: int = 250
    device: str = "cpu"
    dtype: str = "auto"
    threads: int = 0
    weights: str = ""
    checkpoint: str = ""
    cache: str = ""
    real: str = ""
    plugins: tuple[tuple[str, str], ...] = ()

    def identity(self) -> dict[str, Any]:
        """The settings that all results of one table must share."""
        values = {k: v for k, v in asdict(self).items() if k not in NOT_IN_RESULTS}
        texts = [prompt.text for prompt in self.prompts]
        return {**values, "prompts": f"{len(texts)}:{digest(texts)}"}

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values, to send to another process."""
        return asdict(self)


def options_from(values: dict[str, Any]) -> Options:
    """The inverse of `as_dict`; also accepts values that went through JSON."""
    prompts = tuple(Prompt(**prompt) for prompt in values["prompts"])
    plugins = tuple((name, path) for name, path in values["plugins"])
    return Options(**{**values, "prompts": prompts, "plugins": plugins})


def digest(value: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file's contents; for very large files, of both ends and the size."""
    with path.open("rb") as file:
        sha = hashlib.sha256(file.read(1 << 24))
        size = path.stat().st_size
        if size > 1 << 25:
            file.seek(-(1 << 24), 2)
        sha.update(file.read())
    sha.update(str(size).encode())
    return sha.hexdigest()[:16]
