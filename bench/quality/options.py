"""The options of the command line that apply to all cells of a sweep or study."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .prompts import Prompt

NOT_IN_RESULTS = ("cache", "real", "batch", "threads")
"""Options that may differ between the results of one table.

These options decide where or how fast the cells run; `real` decides whether the Frechet distance is measured.
At most they change the other figures by rounding.
"""


@dataclass(frozen=True)
class Options:
    """Settings of a measurement.

    Attributes:
        prompts: the prompts; every cell samples one image for each of them.
        size: width and height of the images, pixels.
        cfg: guidance scale; 0 takes the default of the model (sources.py).
        scheduler: ComfyUI's name of the scheduler, for cells without a grid.
        batch: largest number of images sampled in one batch.
        default_steps: a cell's cost is relative to that of a dense run with this number of steps.
        reference_steps: steps of the converged trajectory.
        device, dtype, threads: the arguments of `start` in bench/common/setup.py.
        weights: folder of the demo models' weights; if empty, those that the pack includes are used.
        checkpoint: path of a user's model file; empty to measure the demo models only.
        cache: folder that keeps reference trajectories and calibrations between runs.
        real: folder of real images for the Frechet distance; if empty, the distance is not measured.
        plugins: for each further quality figure to compute (weighted_figures.py): its name, and the folder of
            the network weights that the figure needs, or "".
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
        """The settings that must be the same for all results of one table, by name."""
        values = {k: v for k, v in asdict(self).items() if k not in NOT_IN_RESULTS}
        texts = [prompt.text for prompt in self.prompts]
        return {**values, "prompts": f"{len(texts)}:{digest(texts)}"}

    def as_dict(self) -> dict[str, Any]:
        """The options as a dictionary of plain values, which can be sent to another process."""
        return asdict(self)


def options_from(values: dict[str, Any]) -> Options:
    """Options from the result of `as_dict`, also after it was written to JSON and read back."""
    prompts = tuple(Prompt(**prompt) for prompt in values["prompts"])
    plugins = tuple((name, path) for name, path in values["plugins"])
    return Options(**{**values, "prompts": prompts, "plugins": plugins})


def digest(value: Any) -> str:
    """A hash of 16 hex digits of any value that can be written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A hash of 16 hex digits of a file's contents and size.

    For a file of more than 32 MiB, only its first and last 16 MiB are read.
    """
    with path.open("rb") as file:
        sha = hashlib.sha256(file.read(1 << 24))
        size = path.stat().st_size
        if size > 1 << 25:
            file.seek(-(1 << 24), 2)
        sha.update(file.read())
    sha.update(str(size).encode())
    return sha.hexdigest()[:16]
