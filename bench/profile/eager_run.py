"""Measure how much CPU time the Python code of each step takes, without CUDA graphs. The networks are narrow,
so that the GPU's work does not hide this time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher

from ...ras_core.config import RASConfig
from ...ras_core.host.patch import last_trace, patch_model
from ..common.shapes import SHAPES, Shape
from .counts import Counts, OperationCounter, counted_functions

STEPS = 12
START_STEP = 4
WATCHED = range(START_STEP + 1, STEPS - 1)
"""Indices of the measured steps: all regional steps except the first regional one and the last step of the
run."""

SIDE, SHARE = 16, 4
"""SIDE: number of latent pixels along one side of the image. SHARE: number of all tokens, divided by the
number of active tokens in a regional step."""

DEPTH = {"sd3_medium": 24, "sd35_large": 38, "sd35_medium": 24, "lumina2": 26, "z_image": 30}

HEADER = (
    f"{'':26}{'ms':>8}{'operations':>12}{'kernels':>9}{'allocations':>13}{'functions':>11}{'builtins':>10}"
)


@dataclass(frozen=True)
class Cost:
    """Cost of one step: CPU seconds on one core, and the number of operations and calls."""

    seconds: float
    counts: Counts

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.counts - other.counts)


def line(family: str, what: str, cost: Cost) -> str:
    """A row under HEADER."""
    n = cost.counts
    return (
        f"{family:11}{what:15}{1000 * cost.seconds:8.2f}{n.operations:12.1f}{n.kernels:9.1f}"
        f"{n.allocations:13.1f}{n.functions:11.1f}{n.builtins:10.1f}"
    )


@dataclass
class Runner:
    """Runs a model at one image size, and keeps the durations of its steps in `seconds`."""

    shape: Shape
    model: ModelPatcher
    side: int
    seconds: list[float] = field(default_factory=list)

    def counts(self) -> Counts:
        """Average counts per step."""
        with OperationCounter() as counter:
            marks = self.run(lambda: counter.counts)
        with counted_functions() as found:
            calls = self.run(lambda: Counts(functions=found["call"], builtins=found["c_call"]))
        first, last = WATCHED[0] - 1, WATCHED[-1]
        of_python, of_torch = ((each[last] - each[first]) / len(WATCHED) for each in (calls, marks))
        return replace(of_torch, functions=of_python.functions, builtins=of_python.builtins)

    def time(self) -> None:
        """Sample once, and append the CPU seconds of each measured step to `seconds`."""
        marks = self.run(time.thread_time)
        self.seconds += [marks[i] - marks[i - 1] for i in WATCHED]

    def run(self, read: Callable[[], Any]) -> list[Any]:
        """Sample once; returns what `read` returned at the end of each step."""
        marks: list[Any] = []
        latent = torch.zeros(1, self.shape.channels, self.side, self.side)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
        comfy.sample.sample(
            self.model, noise, STEPS, 4.0, "euler", "simple", *map(self.shape.conditioning, (0, 1)), latent,
            callback=lambda *_: marks.append(read()), disable_pbar=True, seed=1,
        )  # fmt: skip
        return marks


@torch.inference_mode()
def costs(name: str, format_names: Sequence[str], seconds: float) -> list[Cost]:
    """Cost of a step without RAS, then cost of a regional step with each setting of `kv_cache`.

    The step without RAS is on a smaller image: its number of tokens is the number of active tokens in a
    regional step.

    Args:
        name: a family, a key of DEPTH.
        format_names: settings of `kv_cache`.
        seconds: total duration of the timing. Runs without RAS and runs with each setting take turns.
    """
    shape = narrow(name)
    model = shape.build(torch.device("cpu"))
    runners = [Runner(shape, model, round(SIDE / SHARE**0.5))]
    for format_name in format_names:
        config = RASConfig(
            sample_ratio=1 / SHARE, start_step=START_STEP, error_reset_every=0, kv_cache=format_name,
            cuda_graphs="off", corrections=True,
        )  # fmt: skip
        runners.append(Runner(shape, patch_model(model, config), SIDE))
        runners[-1].run(lambda: None)
        trace = last_trace(runners[-1].model)
        if trace.regional_steps != STEPS - START_STEP or trace.notes:
            raise RuntimeError(trace.summary())
    counts = [runner.counts() for runner in runners]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for runner in runners:
            runner.time()
    # The 20th percentile of the step times: other processes on this machine make many steps slower.
    quiet = [statistics.quantiles(runner.seconds or [0.0, 0.0], n=5)[0] for runner in runners]
    return list(map(Cost, quiet, counts))


def narrow(name: str) -> Shape:
    """A network with as many blocks as the family's real model, but narrow layers and few text rows."""
    tiny = SHAPES[name].tiny()
    depth = "num_blocks" if "num_blocks" in tiny.unet_config else "n_layers"
    return replace(tiny, unet_config={**tiny.unet_config, depth: DEPTH[name]})
