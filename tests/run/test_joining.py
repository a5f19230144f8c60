"""In which evaluations a conditioning joins a run."""

import pytest
from ras_pack.ras_core.run.joining import Joining


def joined(starts, levels, unanswered=()):
    """The levels, of these evaluations in order, at which a conditioning joins."""
    joining, found = Joining(starts), []
    for level in levels:
        if joining.is_at(level):
            found.append(level)
        if level not in unanswered:
            joining.keep(level)
    return found


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], []),
        ([0.5], [0.4]),
        ([0.6], [0.6]),  # it applies at this level itself
        ([0.5, 0.5], [0.4]),
        ([0.7, 0.1], [0.6, 0.1]),
        ([0.05], []),
        ([2.0], []),  # it applies from the beginning, when nothing is cached yet
        ([1.0], []),
    ],
)
def test_each_joins_once(starts, expected):
    assert joined(starts, [1.0, 0.8, 0.6, 0.4, 0.1]) == expected


def test_samplers_that_evaluate_a_level_twice_or_go_back():
    assert joined([0.5], [1.0, 0.6, 0.6, 0.4, 0.4, 0.7, 0.4]) == [0.4]


def test_levels_are_compared_in_float32_as_comfyui_does():
    level = 0.30000001192092896  # 0.3 in float32
    assert level > 0.3 and joined([0.3], [1.0, level, 0.1]) == [level]


def test_an_evaluation_that_another_node_answered_does_not_count():
    """The conditioning's first call is then in the next evaluation."""
    assert joined([0.5], [1.0, 0.6, 0.4, 0.3, 0.2], unanswered=[0.4]) == [0.4, 0.3]
