"""Studies that validate the method. Each study is a command of `bench quality` that writes a table and a
plot.
"""

from __future__ import annotations

from collections.abc import Callable

from . import backgrounds, drift, early_steps, inpainting, metrics, pareto, start_step

COMMANDS: dict[str, Callable[..., str]] = {
    "metrics": metrics.run,
    "start-step": start_step.run,
    "pareto": pareto.run,
    "backgrounds": backgrounds.run,
    "drift": drift.run,
    "early-steps": early_steps.run,
    "inpaint": inpainting.run,
}
