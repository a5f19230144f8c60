"""Settings of RAS that change how it runs."""

from __future__ import annotations

from dataclasses import replace

from ras_pack.ras_core.config import PaperSettings

from .guidance import EVERY
from .rows import CONFIG, DENSE, REFUSED, Group, Row, Run

INPUTS = "tests/nodes/test_inputs.py"
CACHES = (("gpu", "sd3"), ("fp8", "flux"), ("cpu", "lumina2"), ("forecast", "lumina_next"))

GROUP = Group(
    "Settings of RAS",
    (
        Row(
            "sample_ratio 1",
            DENSE,
            EVERY,
            note="You asked for dense steps, so there is no warning.",
            test="tests/models/test_proofs.py::TestIdentity::test_dense_settings_change_nothing",
        ),
        Row(
            "the method of the paper (RAS Paper Settings)",
            families=("sd3", "z_image"),
            run=Run(config=replace(CONFIG, paper=PaperSettings(), corrections=False)),
        ),
        Row(
            "error_reset_every",
            families=("lumina_next",),
            run=Run(config=replace(CONFIG, error_reset_every=2), steps=7),
            regional=3,
        ),
        Row(
            "a start that leaves no regional step",
            DENSE,
            ("sd3", "flux"),
            Run(config=replace(CONFIG, start_step=9)),
            reason="no regional step fits",
            note="All steps belong to the dense start of the run.",
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
            note="The mask has no meaning.",
            test=f"{INPUTS}::TestPriority::test_a_mask_that_cannot_be_used",
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
