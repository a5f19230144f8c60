"""Decides whether a run has so few steps that RAS stays out of it."""

from __future__ import annotations

from .sigma_grid import Levels, position_at

FEW_STEPS = 8
"""With a speed, RAS stays out of runs of at most this many steps, counted for the whole schedule.

Distilled models make an image in so few steps, and need each of them. On the demo models, dense runs with ab2
lose 2.0 to 2.3 dB with 8 steps instead of 9, and another 1.9 to 2.6 dB with 7. Regional steps cannot make up
for that: over dense runs of the same cost, plans gain at most 1.2 dB, and at most 1.0 dB at the cost of 9.3
dense steps, the smallest that was measured (bench/results/2026-11-27-h200/quality). With 8 steps at 2x, the
cost is 4 dense steps, and the two dense steps that token selection needs take half of it. No distilled model
was measured.
"""

STAYS_OUT = f"RAS has nothing to gain in {FEW_STEPS} or fewer steps, so the run is the same as without RAS"


LEAST_BUDGET = 8.0
"""Smallest cost of a run with regional steps, in multiples of the cost of a dense step. Below it, a run with
a speed has dense steps only, fewer of them.

Two or three dense steps would be left before the first regional one, and steps would be so long that tokens
that wait spoil the image: with costs of 5 to 7, plans with regional steps were 2 to 6 dB worse than as many
dense euler steps, and images had coloured blocks (docs/quality.md, Few steps)."""

SOLVER_OF_FEW = "euler"
"""The method that integrates such runs. In five steps, it came 3 to 4 dB closer than ab2; in eight, ab2 is as
close or closer."""

LEAST_STEPS = 5
"""Least number of steps of a run with a speed, counted for the whole schedule. On the demo models, images of
five dense euler steps looked clean, those of four did not."""

AT_LEAST = f"fewer than {LEAST_STEPS} steps would spoil the image, so the run takes {LEAST_STEPS}"

FEW_STEPS_PLAN = " (few steps: no step is regional)"
"""How the text of a plan says that its steps are dense because there is no room for regional ones."""

NO_ROOM = "the run has too few steps for regional ones at this speed"


def has_room(full_steps: float, speed: str) -> bool:
    """Whether a run at this speed may have regional steps.

    Args:
        full_steps: number of steps that the run would have without RAS if it covered the whole schedule.
        speed: one of PLAN_SPEEDS.
    """
    return full_steps / float(speed.removesuffix("x")) >= LEAST_BUDGET


def is_bounded(full_steps: float, speed: str) -> bool:
    """Whether a run at this speed would have fewer than LEAST_STEPS dense steps. The arguments are as in
    `has_room`.
    """
    return full_steps / float(speed.removesuffix("x")) < LEAST_STEPS


def is_few(steps: float) -> bool:
    """Whether RAS stays out of a run.

    Args:
        steps: number of steps that the run would have if it covered the whole schedule.
    """
    return round(steps) <= FEW_STEPS


def steps_for(steps: int, denoise: float) -> int:
    """The number of steps of the schedule of which ComfyUI's KSampler takes the last `steps`, so that its run
    starts at the noise level that `denoise` asks for. With denoise 0, it takes none; the result is `steps`.
    """
    return int(steps / denoise) if 0 < denoise < 1 else steps


def whole_run_steps(fine: Levels, given: Levels) -> float:
    """The number of steps of a run over the whole schedule whose steps are as long as those of this run,
    which may cover only a part of the schedule.

    Args:
        fine: the model's `simple` schedule, with many steps.
        given: the noise levels of the run, at least two.
    """
    part = position_at(fine, given[-1]) - position_at(fine, given[0])
    steps = len(given) - 1
    return steps / part if part > 0 else steps  # no part: all levels are outside the schedule's range
