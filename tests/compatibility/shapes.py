"""Sizes and batches of latents."""

from __future__ import annotations

from .guidance import EVERY
from .rows import DENSE, REFUSED, Group, Row, Run

PROOFS = "tests/models/test_proofs.py"


def _size(height: int, width: int, families: tuple[str, ...], **more: object) -> Row:
    name = f"a latent of {height} x {width} (an image of {8 * height} x {8 * width} pixels)"
    return Row(name, families=families, run=Run(size=(height, width)), **more)


GROUP = Group(
    "Sizes and batches",
    (
        Row(
            "a batch of three images",
            families=EVERY,
            note="Each image is the same as in a run of its own.",
            test=f"{PROOFS}::TestReality::test_a_batch_equals_its_single_runs",
        ),
        Row(
            "a batch, and prompts in separate calls",
            families=EVERY,
            test=f"{PROOFS}::TestReality::test_conditionings_in_separate_calls_equal_one_call",
        ),
        Row(
            "square, wide and odd sizes",
            families=EVERY,
            test=f"{PROOFS}::TestReality::test_all_tokens_in_shuffled_order_equal_the_dense_call",
        ),
        Row(
            "another size in the next run",
            families=EVERY,
            test=f"{PROOFS}::TestLifeCycle::test_second_run_and_changed_size_equal_a_fresh_model",
        ),
        _size(13, 19, ("sd3", "lumina2", "lumina_next", "flux")),
        _size(2, 60, ("sd3", "flux")),
        _size(60, 2, ("lumina_next",)),
        _size(20, 20, ("z_image",), note="100 tokens are padded to 128 rows."),
        _size(4, 4, ("sd3",), note="With so few tokens, no time is saved."),
        _size(2, 2, ("flux",), note="There is one token, so no time is saved."),
        Row(
            "several latents in one (nested latents), at RAS Scheduler",
            REFUSED,
            test="tests/nodes/test_inputs.py::TestRunning::test_several_latents_in_one",
            note="RAS works on one latent.",
        ),
        Row(
            "a list of latents",
            note="Each has its own run and its own trace.",
            test="tests/nodes/test_trace.py::TestWhoseTrace::test_a_list_of_latents",
        ),
        Row(
            "video latents",
            DENSE,
            (),
            note="RAS works on images only.",
            test="tests/host/test_host_calls.py::test_a_latent_that_is_not_an_image_is_reported",
        ),
    ),
)
