"""Measure which parts of the noise schedule need the most steps on a model.

This is measured once per model, on prompts that the sweep does not measure quality with, and kept on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ...ras_core.errors import RASError
from ...ras_core.host.calibration import BLOCKS, FINE_STEPS
from ...ras_core.host.measured_runs import Task, block_costs, simple_levels
from ...ras_core.method.sigma_grid import density_of
from ..common.progress import say
from .options import Options, digest
from .prompts import CALIBRATION, read_prompts
from .sources import Source


def costs_of(
    source: Source, options: Options, cfg: float, tasks: Callable[[Sequence[str]], Iterable[Task]]
) -> tuple[float, ...]:
    """For each twelfth of a fine `simple` schedule: the error of the final latents if one Euler step replaces
    all steps of this twelfth.

    The costs are kept in the folder of the reference trajectories, in a file whose name contains a hash of
    everything that they depend on.

    Args:
        source: the model to measure.
        options: the options of the sweep; the calibration leaves out the prompts that they name.
        cfg: guidance scale.
        tasks: makes the sampling tasks for a list of prompt texts.
    """
    texts = unjudged([prompt.text for prompt in options.prompts])
    recipe = [source.identity, texts, options.size, cfg, options.dtype, FINE_STEPS, BLOCKS]
    path = Path(options.cache) / f"{source.family}-calibration-{digest(recipe)}.json"
    if options.cache and path.is_file():
        return tuple(json.loads(path.read_text(encoding="utf-8"))["costs"])
    costs = measured_costs(tasks(texts))
    density = density_of(costs)
    shown = " ".join(f"{len(costs) * share:.2f}" for share in density)
    say(f"calibrated {source.family} on {len(texts)} other prompts: step density {shown} (1 is average)")
    if options.cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"costs": costs, "density": density, "prompts": texts}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return costs


def unjudged(judged: Sequence[str]) -> list[str]:
    """The calibration prompts that are not among the prompts that quality is measured with (`judged`).

    Raises:
        RASError: all calibration prompts are in `judged`.
    """
    found = [prompt.text for prompt in read_prompts(CALIBRATION) if prompt.text not in set(judged)]
    if not found:
        raise RASError(
            "all calibration prompts are among the prompts of this sweep.",
            f"at least one prompt of {CALIBRATION.name} that the sweep does not use.",
            "choose other prompts with --prompts.",
        )
    return found


@torch.inference_mode()
def measured_costs(tasks: Iterable[Task]) -> tuple[float, ...]:
    """Costs of the twelfths of the schedule: root mean square over the images of all tasks."""
    images, total = 0, [0.0] * BLOCKS
    for task in tasks:
        found = block_costs(task, "euler", simple_levels(task.model, FINE_STEPS), BLOCKS)
        images += len(task.noise)
        total = [known + len(task.noise) * cost**2 for known, cost in zip(total, found, strict=True)]
    return tuple((each / images) ** 0.5 for each in total)
