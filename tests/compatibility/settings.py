"""Settings of RAS that change how it runs."""

from __future__ import annotations

from dataclasses import replace

from ras_pack.ras_core.config import PaperSettings

from .cells import Result
from .rows import CONFIG, DENSE, REFUSED, Group, Row, Run

INPUTS = "tests/nodes/test_inputs.py"
CACHES = (("gpu", "sd3"), ("fp8", "flux"), ("cpu", "lumina2"), ("forecast", "lumina_next"))


def _resets_are_dense(found: Result) -> None:
    """Both evaluations of a step with `heun` are as planned."""
    dense = {each.step for each in found.trace.evaluations if each.active_share == 1}
    assert dense == {0, 1, 4, 6} and len(found.trace.evaluations) == 13


GROUP = Group(
    "Settings of RAS",
    (
        Row(
            "sample_ratio 1",
            DENSE,
            ("sd3", "z_image", "flux"),
            Run(config=replace(CONFIG, sample_ratio=1.0)),
            note="You asked for dense steps, so there is no warning.",
        ),
        Row(
            "the method of the paper (RAS Paper Settings)",
            families=("sd3", "z_image"),
            run=Run(config=replace(CONFIG, paper=PaperSettings(), corrections=False)),
        ),
        Row(
            "error_reset_every",
            families=("lumina_next",),
            run=Run(config=replace(CONFIG, error_reset_every=2), steps=7, sampler="heun"),
            regional=3,
            check=_resets_are_dense,
        ),
        Row(
            "a start that leaves no regional step",
            DENSE,
            ("sd3", "flux"),
            Run(config=replace(CONFIG, start_step=9)),
            reason="no regional step fits",
            note="The dense start covers the whole run.",
        ),
        *(
            Row(f"kv_cache `{name}`", families=(family,), run=Run(config=replace(CONFIG, kv_cache=name)))
            for name, family in CACHES
        ),
        Row(
            "priority: a mask of any type and size",
            test=f"{INPUTS}::TestPriority::test_a_mask_of_any_type_means_the_same",
        ),
        Row(
            "priority: several masks, but not one for each image of the batch",
            DENSE,
            note="It is not clear which mask belongs to which image.",
            test=f"{INPUTS}::TestPriority::test_another_number_of_masks_than_images_runs_dense",
        ),
        Row(
            "priority: a mask with NaN, infinity or no pixels",
            REFUSED,
            note="Such a mask has no meaning.",
            test=f"{INPUTS}::TestPriority::test_a_mask_that_cannot_be_used",
        ),
        Row(
            "live view, previews",
            note="The image is the same with and without them.",
            test="tests/run/test_live.py::TestContents::test_the_image_is_the_same_as_unwatched",
        ),
        Row(
            "a value out of range",
            REFUSED,
            note="The error names the range.",
            test=f"{INPUTS}::TestQueued::test_values_that_cannot_be_used",
        ),
        Row(
            "a speed without a plan for it",
            REFUSED,
            note="The error names the speeds that have plans.",
            test=f"{INPUTS}::TestRunning::test_plans_of_other_speeds_are_refused_before_sampling",
        ),
    ),
)
