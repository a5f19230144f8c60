"""Which runs have so few steps that RAS stays out of them."""

import pytest
from ras_pack.ras_core.method.few_steps import FEW_STEPS, STAYS_OUT, is_few, steps_for, whole_run_steps
from ras_pack.ras_core.method.sigma_grid import grid, positions

FINE = tuple(1 - i / 200 for i in range(201))
SHIFTED = tuple(3 * level / (1 + 2 * level) for level in FINE)


def part(fine, steps, start, end):
    """The noise levels of evenly spaced steps over a part of a schedule."""
    return grid(fine, positions((1.0,), steps, start, end))


@pytest.mark.parametrize("fine", [FINE, SHIFTED], ids=["linear", "shifted"])
@pytest.mark.parametrize(
    ("steps", "start", "end", "whole"),
    [(8, 0, 1, 8), (4, 0, 0.5, 8), (4, 0.5, 1, 8), (2, 0.5, 0.75, 8), (8, 0.5, 1, 16), (1, 0, 1, 1)],
)
def test_steps_of_a_part_count_as_those_of_the_whole_schedule(fine, steps, start, end, whole):
    assert whole_run_steps(fine, part(fine, steps, start, end)) == pytest.approx(whole)


def test_another_scheduler_over_the_whole_schedule_has_its_own_number_of_steps():
    assert whole_run_steps(FINE, (1.0, 0.9, 0.2, 0.1, 0.0)) == 4


def test_levels_outside_the_schedule_count_as_they_are():
    assert whole_run_steps(FINE, (14.6, 9.0, 4.0, 2.0)) == 3


@pytest.mark.parametrize(("steps", "few"), [(1, True), (8, True), (8.01, True), (8.6, False), (9, False)])
def test_the_boundary(steps, few):
    """A part of a schedule is measured between levels that ComfyUI has rounded."""
    assert is_few(steps) == few


@pytest.mark.parametrize(
    ("steps", "denoise", "total"), [(8, 1, 8), (8, 0.92, 8), (8, 0.88, 9), (4, 0.5, 8), (4, 0, 4)]
)
def test_the_steps_of_the_schedule_that_denoise_cuts(steps, denoise, total):
    assert steps_for(steps, denoise) == total


def test_the_sentence_names_the_boundary():
    assert f"{FEW_STEPS} or fewer steps" in STAYS_OUT
