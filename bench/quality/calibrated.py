"""Where steps belong on a model, measured once on prompts that are not judged, and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...ras_core.errors import RASError
from ...ras_core.host.calibration import BLOCKS, FINE_STEPS
from ...ras_core.host.measured_runs import Task, block_costs, simple_levels
from ...ras_core.method.sigma_grid import density_of
from ..common.progress import say
from .options import digest
from .prompts import CALIBRATION, read_prompts

if TYPE_CHECKING:
    from .sampling import Studio


def costs_of(studio: Studio) -> tuple[float, ...]:
    """Final error of one long Euler step over each twelfth of a fine `simple` schedule, for a studio's model.

    Kept in the folder of the references, by all that decides it.
    """
    texts = unjudged([prompt.text for prompt in studio.options.prompts])
    options, source = studio.options, studio.source
    recipe = [source.identity, texts, options.size, studio.cfg, options.dtype, FINE_STEPS, BLOCKS]
    path = Path(options.cache) / f"{source.family}-calibration-{digest(recipe)}.json"
    if options.cache and path.is_file():
        return tuple(json.loads(path.read_text(encoding="utf-8"))["costs"])
    costs = _measured(studio, texts)
    density = density_of(costs)
    shown = " ".join(f"{len(costs) * share:.2f}" for share in density)
    say(f"calibration: {source.family}, {len(texts)} other prompts, density {shown}")
    if options.cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"costs": costs, "density": density, "prompts": texts}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return costs


def unjudged(judged: Sequence[str]) -> list[str]:
    """The calibration prompts that are not among the judged ones.

    Raises:
        RASError: all of them are.
    """
    found = [prompt.text for prompt in read_prompts(CALIBRATION) if prompt.text not in set(judged)]
    if not found:
        raise RASError(
            "all calibration prompts are among the judged ones.",
            f"other prompts than those of {CALIBRATION.name}.",
            "name other --prompts.",
        )
    return found


@torch.inference_mode()
def _measured(studio: Studio, texts: Sequence[str]) -> tuple[float, ...]:
    from .sampling import make_batches, noise_of

    source = studio.source
    shape = source.latent_shape(studio.options.size)
    total: list[float] = [0.0] * BLOCKS
    for batch in make_batches(source.encode, texts, len(texts)):
        noise = torch.stack([noise_of(texts[row], 0, shape) for row in batch.rows])
        task = Task(source.model, batch.positive, batch.negative, noise, studio.cfg)
        found = block_costs(task, "euler", simple_levels(source.model, FINE_STEPS), BLOCKS)
        total = [sum_ + len(batch.rows) * cost**2 for sum_, cost in zip(total, found, strict=True)]
    return tuple((each / len(texts)) ** 0.5 for each in total)
