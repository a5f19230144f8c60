"""All groups of the table, in the order of the page."""

from . import (
    guidance,
    life_cycle,
    models,
    numbers,
    packs,
    patches,
    prompts,
    samplers,
    schedules,
    settings,
    shapes,
)

GROUPS = tuple(
    each.GROUP
    for each in (
        guidance, prompts, samplers, schedules, patches, shapes, settings, numbers, life_cycle, packs, models,
    )
)  # fmt: skip
