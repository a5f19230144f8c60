"""Sampling runs for measurements on a user's model, with ComfyUI's own samplers.

A block is a number of consecutive steps of a schedule. To measure the error of one long step over a block,
the model is evaluated only after the start of this block. For the steps up to the start, the sampler gets the
denoised estimates of an earlier run instead. This halves the number
of evaluations. The result is exactly that of a full run for any deterministic sampler that evaluates once per
step, including multistep samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .names import TEXT

OnStep = Callable[[int], None]
"""Called after each step with the index of the step, from 0."""


@dataclass(frozen=True)
class Task:
    """The model and inputs of the measurements.

    Attributes:
        model: a MODEL without RAS.
        positive, negative: CONDITIONING.
        noise: (b, c, H, W), one image for each seed.
        cfg: guidance scale.
    """

    model: ModelPatcher
    positive: list
    negative: list
    noise: Tensor
    cfg: float

    @classmethod
    def of(
        cls, model: ModelPatcher, conditionings: tuple[list, list], latent: Tensor, cfg: float, seeds: int
    ) -> Task:
        """A task with the noise of seeds 0 to `seeds` - 1. Of the latent, only the size is used."""
        empty = torch.zeros_like(latent[:1])
        empty = torch.zeros_like(comfy.sample.fix_empty_latent_channels(model, empty))
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in range(seeds)])
        return cls(model, *conditionings, noise, cfg)

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the image."""
        scale = getattr(self.model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
        return self.noise.shape[-2] * scale, self.noise.shape[-1] * scale

    @property
    def conds(self) -> list[dict[str, Any]]:
        """All conditionings, positive and negative, as the dicts that guiders have in their `conds`."""
        return [{**extras, TEXT: context} for context, extras in (*self.positive, *self.negative)]

    def levels(self, steps: int) -> tuple[float, ...]:
        """The noise levels of the model's own `simple` schedule with this number of steps."""
        return simple_levels(self.model, steps)

    def sample(
        self,
        sampler: Any,
        levels: Sequence[float],
        model: ModelPatcher | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample all seeds in one run. Returns the final latents, (b, c, H, W) float32 on the CPU.

        Args:
            sampler: a SAMPLER.
            levels: noise levels of the run; a run of n steps has n + 1 levels.
            model: used instead of the task's model, for example a clone that is patched with RAS.
            on_step: called with each step's index.

        Raises:
            InterruptProcessingException: the user pressed stop.
        """

        def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if on_step is not None:
                on_step(step)

        result = comfy.sample.sample_custom(
            model or self.model, self.noise, self.cfg, sampler, torch.tensor(levels), self.positive,
            self.negative, torch.zeros_like(self.noise), callback=callback, disable_pbar=True, seed=0,
        )  # fmt: skip
        return result.float().cpu()


def simple_levels(model: ModelPatcher, steps: int) -> tuple[float, ...]:
    """The noise levels of a model's `simple` schedule: `steps` + 1 numbers, the last is 0."""
    sampling = model.get_model_object("model_sampling")
    return tuple(comfy.samplers.calculate_sigmas(sampling, "simple", steps).tolist())


def block_costs(
    task: Task, sampler_name: str, levels: Sequence[float], blocks: int, on_step: OnStep | None = None
) -> tuple[float, ...]:
    """For each block of steps of a fine schedule: the RMS error of the final latents if one long step
    replaces all steps of the block.

    The measurement takes `block_evaluations(len(levels) - 1, blocks)` evaluations for each seed.

    Args:
        task: model and inputs.
        sampler_name: "euler" or "dpmpp_2m".
        levels: the fine schedule; its number of steps must be a multiple of `blocks`.
        blocks: number of blocks.
        on_step: called after each evaluation with the index of its step.
    """
    width = (len(levels) - 1) // blocks
    fine = ReplayedStart(sampler_name)
    reference = task.sample(fine.sampler(), levels, on_step=on_step)
    costs = []
    for block in range(blocks):
        first = block * width
        known = fine.estimates[: first + 1]
        coarse = ReplayedStart(sampler_name, known)
        skipping = (*levels[: first + 1], *levels[first + width :])
        found = task.sample(coarse.sampler(), skipping, on_step=_after(len(known), on_step))
        costs.append(rms(found - reference))
    return tuple(costs)


def block_evaluations(steps: int, blocks: int) -> int:
    """Number of evaluations that `block_costs` makes for each seed: one for each step of the fine run, and
    for each block one for each step after the block. The long step over the block needs no evaluation,
    because the estimate at the start of the block is known from the fine run.
    """
    width = steps // blocks
    return steps + sum(steps - (block + 1) * width for block in range(blocks))


def _after(skipped: int, on_step: OnStep | None) -> OnStep:
    """A callback that passes on only steps that were evaluated: it ignores the first `skipped` steps."""

    def report(step: int) -> None:
        if on_step is not None and step >= skipped:
            on_step(step)

    return report


class ReplayedStart:
    """A sampler of ComfyUI that takes its first denoised estimates from an earlier run, and evaluates the
    model for the others.

    Attributes:
        estimates: all denoised estimates in order, the given and the computed ones, (b, c, H, W) each.
    """

    def __init__(self, sampler_name: str, known: Sequence[Tensor] = ()):
        self._function = comfy.samplers.sampler_object(sampler_name).sampler_function
        self._known = len(known)
        self._next = 0
        self.estimates = list(known)

    def sampler(self) -> comfy.samplers.KSAMPLER:
        return comfy.samplers.KSAMPLER(self._sample)

    def _sample(self, model: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self._model = model
        return self._function(self, *args, **kwargs)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        self._next += 1
        if self._next <= self._known:
            return self.estimates[self._next - 1]
        estimate = self._model(x, sigma, **kwargs)
        self.estimates.append(estimate)
        return estimate

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)


def rms(difference: Tensor) -> float:
    return float(difference.double().pow(2).mean().sqrt())


def closeness(found: Tensor, reference: Tensor) -> tuple[float, ...]:
    """Closeness of each latent to its reference in dB: the ratio of the reference's variance to the mean
    squared error.

    Args:
        found, reference: (b, c, H, W).
    """
    error = (found - reference).double().pow(2).flatten(1).mean(1).clamp_min(1e-12)
    power = reference.double().flatten(1).var(1, unbiased=False).clamp_min(1e-12)
    return tuple((10 * torch.log10(power / error)).tolist())
