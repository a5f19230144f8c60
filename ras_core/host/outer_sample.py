"""The arguments of ComfyUI's wrapper OUTER_SAMPLE, and the start of a run from these arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Protocol

import comfy.model_management
import comfy.sampler_helpers
import torch
from torch import Tensor, nn

from ..config import RASConfig, Window
from ..method.grid import TokenGrid
from ..method.integrator import Solver
from ..method.preferences import Preferences
from ..method.schedule import decreases, why_all_dense
from ..method.selector import selector_for
from ..models.base import ModelAdapter
from ..run.passes import NOT_DECREASING
from ..run.recorder import Recorder
from ..run.state import RunState
from ..run.trace import Trace
from .names import LAZY_CACHE, MASK_FUNCTION, PREDICT_NOISE, TRANSFORMER_OPTIONS, WRAPPERS

logger = logging.getLogger(__name__)

INPAINTING = (
    "inpainting: tokens outside the mask would keep the keys and values of much noisier steps, which would "
    "spoil the image inside the mask"
)


COMPARES_RESULTS = (
    "LazyCache compares the results of steps; it would skip far too many, because regions that RAS skips do "
    "not change"
)


@dataclass(frozen=True)
class OuterSample:
    """The arguments that ComfyUI passes to OUTER_SAMPLE.

    Attributes:
        noise, latent_image: (b, c, H, W), or (b, c, 1, H, W) for families whose latents have a time axis.
        sampler: a SAMPLER.
        sigmas: the schedule, one more value than there are steps.
        denoise_mask: (b or 1, ..., height, width), above 0 where the latent is sampled; or None.
        callback, disable_pbar, seed: as in ComfyUI.
        more: further arguments of later versions of ComfyUI.
    """

    noise: Tensor
    latent_image: Tensor
    sampler: Any
    sigmas: Tensor
    denoise_mask: Tensor | None = None
    callback: Callable | None = None
    disable_pbar: bool = False
    seed: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> OuterSample:
        """The arguments in one object, whether ComfyUI passed them by position or by name."""
        known = {each.name for each in fields(cls)} & kwargs.keys()
        own = {name: kwargs.pop(name) for name in known}
        return cls(*args, **own, more=kwargs)

    def sample(self, executor: Callable[..., Tensor]) -> Tensor:
        """Let ComfyUI sample with these arguments."""
        return executor(
            self.noise, self.latent_image, self.sampler, self.sigmas, self.denoise_mask, self.callback,
            self.disable_pbar, self.seed, **self.more,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def nothing_to_do(self) -> Trace | None:
        """If RAS cannot accelerate this run: the run's trace (log), which contains only the reason. None if
        RAS can accelerate the run.
        """
        if len(self.sigmas) < 2:
            return Trace.empty("the sampler had no step to run")
        if not is_image(self.noise):
            shape = tuple(self.noise.shape)
            logger.warning("Multirate RAS: running dense: the latent is not an image (shape %s).", shape)
            return Trace.empty("not an image latent")
        return None


@dataclass(frozen=True)
class RunSettings:
    """What a run computes.

    Attributes:
        config: the run's settings.
        sigmas: the run's noise levels.
        plan: one line of text for the log and the live view: the number of steps and the share of tokens for
            the speed that the user chose. Empty if the user chose no speed.
        origin: where this plan comes from, for the log.
        solver: the method by which the plan integrates; None to integrate as the user's sampler does.
        shortfall: why the plan cannot reach the speed that the user chose; empty if it can.
        remark: what else the user should know about the plan; empty if there is nothing.
        levels: as in `Trace`: what the plan's noise levels are; empty if the sampler's own are kept.
        full_steps: steps of the run without the plan; 0 if there is no plan.
    """

    config: RASConfig
    sigmas: Tensor
    plan: str = ""
    origin: str = ""
    solver: Solver | None = None
    shortfall: str = ""
    remark: str = ""
    levels: str = ""
    full_steps: int = 0

    def told(self) -> dict[str, str]:
        """The fields that a trace has too."""
        return {"plan": self.plan, "shortfall": self.shortfall, "levels": self.levels}


class Settings(Protocol):
    """The settings of a RAS node; with a run's sampler, steps and size, they determine the run's settings."""

    def of_run(self, given: OuterSample, guider: Any) -> RunSettings:
        """The settings of the run that is about to start. `given` holds the arguments of this run."""


@dataclass(frozen=True)
class CustomSettings:
    """Settings that the user made in detail, without a speed; the sampler's noise levels are kept.

    Attributes:
        config: the settings of every run.
        window: the start and end of the regional steps as shares of the run's number of steps. They replace
            the `start_step` and `end_step` of `config`, which are step numbers. None to use these two.
    """

    config: RASConfig
    window: Window | None = None

    def of_run(self, given: OuterSample, guider: Any) -> RunSettings:
        config = self.window.of_run(self.config, given.steps) if self.window else self.config
        return RunSettings(config, given.sigmas)


def is_image(latent: Tensor) -> bool:
    """Whether a latent has no time axis, or a single latent frame: (b, c, H, W) or (b, c, 1, H, W)."""
    return latent.ndim == 4 or (latent.ndim == 5 and latent.shape[2] == 1)


def is_inpainting(given: OuterSample, guider: Any) -> bool:
    """Whether a part of the latent is given at every step. A function of another node (such as Differential
    Diffusion) may change the mask from step to step, so with one any mask counts.
    """
    if given.denoise_mask is None:
        return False
    return MASK_FUNCTION in guider.model_options or not bool((given.denoise_mask >= 1).all())


def compares_results(guider: Any) -> bool:
    """Whether a step cache of ComfyUI decides by the change of results which evaluations it answers."""
    wrappers = guider.model_options.get(TRANSFORMER_OPTIONS, {}).get(WRAPPERS, {})
    return bool(wrappers.get(PREDICT_NOISE, {}).get(LAZY_CACHE))


def begin_run(
    given: OuterSample, network: nn.Module, adapter: ModelAdapter, config: RASConfig, priority: Tensor | None
) -> RunState:
    """The state of a run that starts now; warns if it will have no regional step."""
    noise = given.noise
    grid = TokenGrid.of(noise.shape[2:], adapter.patch_size(network))
    recorder = Recorder(grid, noise.shape[0])
    generator = torch.Generator().manual_seed((given.seed or 0) % 2**63)
    favoured = _at_latent_size(priority, noise)
    new_selector = partial(selector_for, config, grid, generator, Preferences.of(grid, favoured))
    run = RunState(config, given.sigmas.tolist(), grid, noise.shape[0], new_selector, recorder)
    _explain_dense_plan(run)
    if run.is_regional and priority is not None and noise.shape[0] % len(priority):
        run.go_dense(f"priority has {len(priority)} masks for {noise.shape[0]} images")
    return run


def _at_latent_size(mask: Tensor | None, noise: Tensor) -> Tensor | None:
    """A mask of any size, resized to the latent's size as ComfyUI does: (b, *size) on the sampling device."""
    if mask is None:
        return None
    # Without the time axis, because ComfyUI takes the masks of a latent that has one as frames.
    shape = (*noise.shape[:2], *noise.shape[-2:])
    fitted = comfy.sampler_helpers.prepare_mask(mask, shape, comfy.model_management.get_torch_device())
    return fitted.amax(dim=1).view(-1, *noise.shape[2:])


def _explain_dense_plan(run: RunState) -> None:
    """Warn if the run will have no regional step, and give the reason. Do not warn if the user chose a dense
    run.
    """
    if not decreases(run.sigmas):
        run.go_dense(NOT_DECREASING)
    elif not run.any_regional and run.config.wants_regional:
        run.warn(f"no regional step fits: {why_all_dense(run.plan, run.config)}")
