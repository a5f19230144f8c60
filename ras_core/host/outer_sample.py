"""The arguments of OUTER_SAMPLE, and the start of a run from them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import comfy.model_management
import comfy.sampler_helpers
import torch
from torch import Tensor, nn

from ..config import RASConfig, Window
from ..method.grid import TokenGrid
from ..method.preferences import Preferences
from ..method.schedule import decreases
from ..method.selector import selector_for
from ..models.base import ModelAdapter
from ..run.state import RunState
from ..run.trace import Recorder, Trace

logger = logging.getLogger(__name__)

INPAINTING = (
    "inpainting: regions outside the mask would keep the keys and values of much noisier steps, which would "
    "spoil the result inside the mask"
)


@dataclass(frozen=True)
class OuterSample:
    """The arguments that ComfyUI passes to OUTER_SAMPLE.

    Attributes:
        noise, latent_image: (b, c, H, W).
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
        """From arguments that are passed by position or by name."""
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

    @property
    def is_inpainting(self) -> bool:
        return self.denoise_mask is not None and bool((self.denoise_mask < 1).any())

    def nothing_to_do(self) -> Trace | None:
        """The trace of a run that cannot use the method; None if it can."""
        if len(self.sigmas) < 2:
            return Trace.empty("the sampler had no step to run")
        if self.noise.ndim != 4:
            shape = tuple(self.noise.shape)
            logger.warning("Multirate RAS: running dense: no image latent (shape %s).", shape)
            return Trace.empty("not an image latent")
        return None


@dataclass(frozen=True)
class RunSettings:
    """What a run computes.

    Attributes:
        config: the run's settings.
        sigmas: the run's noise levels.
        plan: the steps and tokens that its speed amounts to, in one line; empty if no speed is set.
        origin: where this plan comes from, for the log.
    """

    config: RASConfig
    sigmas: Tensor
    plan: str = ""
    origin: str = ""


class Settings(Protocol):
    """What a user has set, for runs of any length, sampler and size."""

    def of_run(self, given: OuterSample, guider: Any) -> RunSettings:
        """The settings of the run that starts."""


@dataclass(frozen=True)
class CustomSettings:
    """The user's own settings; the noise levels stay as they are.

    Attributes:
        config: the settings of every run.
        window: the start and end of regional steps as shares of a run, which replace those of `config`; None
            if `config` has them in steps.
    """

    config: RASConfig
    window: Window | None = None

    def of_run(self, given: OuterSample, guider: Any) -> RunSettings:
        config = self.window.of_run(self.config, given.steps) if self.window else self.config
        return RunSettings(config, given.sigmas)


def begin_run(
    given: OuterSample, network: nn.Module, adapter: ModelAdapter, config: RASConfig, priority: Tensor | None
) -> RunState:
    """The state of a run that starts now; warns if it will have no regional step."""
    noise = given.noise
    grid = TokenGrid(tuple(noise.shape[2:]), adapter.patch_size(network))
    recorder = Recorder(grid, noise.shape[0])
    generator = torch.Generator().manual_seed((given.seed or 0) % 2**63)
    favoured, inpainted = (_at_latent_size(mask, noise) for mask in (priority, given.denoise_mask))
    selector = selector_for(config, grid, generator, Preferences.of(grid, favoured))
    run = RunState(config, given.sigmas.tolist(), grid, noise.shape[0], selector, recorder)
    _explain_dense_plan(run)
    # On the demo models, a run of fewer, dense steps came 15 to 17 dB closer to the full run inside the mask
    # than regional steps of the same cost.
    if run.is_regional and inpainted is not None and bool((inpainted < 1).any()):
        run.go_dense(INPAINTING)
    if run.is_regional and priority is not None and noise.shape[0] % len(priority):
        run.go_dense(f"priority has {len(priority)} masks for {noise.shape[0]} images")
    return run


def _at_latent_size(mask: Tensor | None, noise: Tensor) -> Tensor | None:
    """A mask of any size, resized to the latent as in ComfyUI: (b, H, W) on the sampling device."""
    if mask is None:
        return None
    fitted = comfy.sampler_helpers.prepare_mask(mask, noise.shape, comfy.model_management.get_torch_device())
    return fitted.amax(dim=1)


def _explain_dense_plan(run: RunState) -> None:
    """Warn if the run will have no regional step, with the reason, unless the user asked for that."""
    config, n_steps = run.config, len(run.plan)
    if not decreases(run.sigmas):
        run.go_dense("the noise schedule is not strictly decreasing")
    elif not run.any_regional and config.wants_regional:
        run.warn(
            f"no regional step fits: the run has {n_steps} steps, and the first {config.start_step} are dense"
        )
