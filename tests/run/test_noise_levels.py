"""Predicted noise levels: right for samplers that follow the schedule; a sampler that departs from it is
detected.
"""

import pytest
import torch
from ras_pack.ras_core.run.noise_levels import LATEST, LEARNED, NoiseLevels

SCHEDULE = torch.linspace(1, 0, 13).tolist()


class Late:
    """A stand-in for a number read from the device, which arrives only when the reader waits for it."""

    def __init__(self, level, expected):
        self._level, self._expected = level, expected

    def has_arrived(self, wait):
        return wait

    @property
    def is_right(self):
        return abs(float(self._level) - self._expected) < 1e-6


def read(levels, transfer=Late):
    """The noise level that the pack uses for each of the given levels."""
    reader = NoiseLevels(SCHEDULE, transfer)
    return [reader.read(torch.tensor([level])) for level in levels]


def test_a_sampler_in_order_is_predicted_to_continue_in_it():
    class Unread(torch.Tensor):
        def __float__(self):
            raise AssertionError("this would wait for the device")

    reader = NoiseLevels(SCHEDULE, Late)
    for level in SCHEDULE[:LEARNED]:
        assert reader.read(torch.tensor([level])) == level
    assert reader.read(torch.tensor([SCHEDULE[LEARNED]]).as_subclass(Unread)) == SCHEDULE[LEARNED]


def test_the_whole_schedule_is_predicted_even_if_comfyui_changed_the_first_level():
    assert read(SCHEDULE[:-1]) == SCHEDULE[:-1]
    assert read([0.9999, *SCHEDULE[1:-1]])[1:] == SCHEDULE[1:-1]


@pytest.mark.parametrize(
    "levels",
    [
        [level for level in SCHEDULE[:-1] for _ in (0, 1)],  # two evaluations a step
        [0.97 * level for level in SCHEDULE[:-1]],  # shifted, as in samplers of other packs
        [(a + b) / 2 for a, b in zip(SCHEDULE, SCHEDULE[1:], strict=False)],
    ],
)
def test_other_orders_are_read_from_the_first(levels):
    assert read(levels) == pytest.approx(levels)


def test_a_sampler_that_leaves_the_order_is_detected_and_read_from_then_on():
    left = LEARNED + 2
    levels = [*SCHEDULE[:left], *[level + 0.01 for level in SCHEDULE[left:-1]]]
    reader = NoiseLevels(SCHEDULE, Late)
    found = [reader.read(torch.tensor([level])) for level in levels]
    assert reader.was_wrong
    assert found[left + LATEST :] == pytest.approx(levels[left + LATEST :])
    assert found[:left] == SCHEDULE[:left]


def test_more_evaluations_than_levels_are_read():
    levels = [*SCHEDULE[:-1], 0.05, 0.02]
    assert read(levels) == pytest.approx(levels)


def test_if_reading_never_waits_every_level_is_read():
    levels = [*SCHEDULE[:5], 0.123]
    assert read(levels, transfer=None) == pytest.approx(levels)
