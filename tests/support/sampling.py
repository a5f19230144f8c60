"""Sampling with ComfyUI's own functions, with and without RAS, and with prompts grouped into calls."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host.patch import last_trace, patch_model
from torch import Tensor

from support.families import Family

CALC_COND_BATCH = comfy.samplers._calc_cond_batch
"""ComfyUI's own function."""

STEPS = 10
FAST = RASConfig(
    paper=PaperSettings(), cuda_graphs="auto", sample_ratio=0.5, start_step=2, error_reset_every=4
)
"""Steps 0, 1 and 6 of ten are dense, seven are regional; the paper's method."""


@torch.inference_mode()  # ComfyUI executes nodes in this mode
def sample(
    model,
    family: Family,
    noise: Tensor,
    *,
    sampler: str = "euler",
    steps: int = STEPS,
    cfg: float = 4.0,
    positive: list | None = None,
    negative: list | None = None,
    **kwargs: Any,
) -> Tensor:
    """The latent of a KSampler run from `noise`: (b, c, H, W)."""
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple",
        positive if positive is not None else family.conditioning(1),
        negative if negative is not None else family.conditioning(2),
        kwargs.pop("latent_image", torch.zeros_like(noise)), disable_pbar=True, seed=5, **kwargs,
    )  # fmt: skip


def sample_ras(model, family: Family, noise: Tensor, config: RASConfig = FAST, **kwargs: Any):
    """The latent of a run with RAS, and its trace."""
    patched = patch_model(model, config)
    latent = sample(patched, family, noise, **kwargs)
    return latent, last_trace(patched)


def split_prompts(monkeypatch: pytest.MonkeyPatch, model: Any, every: int = 0) -> list:
    """Make the model request more memory than is free, so that ComfyUI evaluates one prompt per call.

    Args:
        every: number of steps after which this switches on or off; 0 for never.

    Returns:
        A list that grows by one whenever ComfyUI asks how much memory the model requires.
    """
    asked = []

    def memory_required(*args: Any, **kwargs: Any) -> float:
        asked.append(1)
        return 1e30 if not every or len(asked) % (2 * every) < every else 0.0

    monkeypatch.setattr(model.model, "memory_required", memory_required)
    return asked


def between_calls(monkeypatch: pytest.MonkeyPatch, wrapper: Callable) -> None:
    """Replace ComfyUI's function that evaluates all prompts of a step by `wrapper`, which gets this function
    as its first argument.
    """
    monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", partial(wrapper, CALC_COND_BATCH))


def in_groups(sizes: Callable[[int], list[int]]) -> Callable:
    """A wrapper that evaluates the prompts in calls with `sizes(step)` prompts each, as ComfyUI does
    depending on free memory. The outputs of the positive prompts are averaged.
    """
    evaluations = []

    def wrapper(executor, model, conds, x_in, timestep, model_options):
        evaluations.append(1)
        singles = [[cond] for group in conds for cond in group]
        found = []
        for size in sizes(len(evaluations) - 1):
            group, singles = singles[:size], singles[size:]
            found += executor(model, group, x_in, timestep, model_options)
        return [sum(found[:-1]) / len(found[:-1]), found[-1]]

    return wrapper


def positive_alone(when: Callable[[int], bool]) -> Callable:
    """Guidance that skips the negative prompt in each evaluation i (counted from 0) for which `when(i)` is
    true.
    """
    evaluations = []

    def wrapper(executor, x, timestep, model_options, seed):
        executor.class_obj.cfg = 1.0 if when(len(evaluations)) else 4.0
        evaluations.append(1)
        return executor(x, timestep, model_options, seed)

    return wrapper


def unload_all_models() -> None:
    """Collect garbage, then call ComfyUI's function of this name.

    ComfyUI's function counts down an index over the list of loaded models. If the garbage collector frees a
    model during this loop, the list becomes shorter, and the index is out of range.
    """
    gc.collect()
    comfy.model_management.unload_all_models()


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2."""
    return float((a - b).norm() / b.norm())
