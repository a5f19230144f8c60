"""The training plan of each family: image sizes, batch sizes, and how many images the bank of latents has."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One stage of the training, at one image size.

    Attributes:
        size: pixels along a side of the images.
        batch: images per step.
        until: share of the training time at which the stage ends.
        mixed: every `mixed`-th step of the stage uses the image size of the first stage; 0: no step does.
    """

    size: int
    batch: int
    until: float
    mixed: int = 0


@dataclass(frozen=True)
class Plan:
    """How one family is trained.

    The training images are variants of the collected images. A variant is an image with a random background,
    scale and shift, encoded to a latent.

    Attributes:
        stages: the stages of the training, in order.
        variants: number of variants of each image.
        prompts: number of random prompts for each variant.
        sample_steps: sampling steps for the test images.
        compiled: whether to use torch.compile.
    """

    stages: tuple[Stage, ...] = (Stage(256, 512, 0.35), Stage(512, 192, 1.0))
    variants: int = 6
    prompts: int = 4
    sample_steps: int = 28
    compiled: bool = True

    @property
    def sizes_drawn(self) -> tuple[int, ...]:
        """The image sizes in pixels at which the last stage trains."""
        last = self.stages[-1]
        return (last.size, self.stages[0].size) if last.mixed else (last.size,)

    def next_stage(self, progress: float) -> Stage:
        """The stage of the training when `progress`, a share of the training time, has elapsed."""
        return next(stage for stage in self.stages if progress < stage.until)


SMOKE_PLAN = Plan(
    stages=(Stage(256, 2, 0.4), Stage(512, 2, 1.0)), variants=1, prompts=2, sample_steps=2, compiled=False
)

EDIT_PLAN = Plan(stages=(Stage(256, 256, 0.4), Stage(512, 96, 1.0)), variants=4)
"""The plan of the editing model. With the rows of a reference image, each image has twice as many rows."""
SMOKE_EDIT_PLAN = replace(SMOKE_PLAN, stages=(Stage(128, 2, 0.4), Stage(256, 2, 1.0)))


def plan_for(family: str, smoke: bool) -> Plan:
    """The plan of a family. Flux is trained at both image sizes until the end.

    Flux can learn both sizes, because all its positions are rotary.
    """
    if family == "flux_edit":
        return SMOKE_EDIT_PLAN if smoke else EDIT_PLAN
    plan = SMOKE_PLAN if smoke else Plan()
    if family != "flux":
        return plan
    return replace(plan, stages=(*plan.stages[:-1], replace(plan.stages[-1], mixed=3)))
