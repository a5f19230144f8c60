"""How the dense and the regional steps of a plan follow each other, and what is kept in other runs."""

import pytest
from ras_pack.ras_core.method.rhythm import Rhythm

SHARE = 0.5


def shown(shares):
    """A letter for each step: D if it is dense, r if it is regional."""
    return "".join("D" if share == 1 else "r" for share in shares)


def shares_of(text):
    return tuple(1.0 if step == "D" else SHARE for step in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DDDrrrrr", Rhythm(3, SHARE)),
        ("DDDrDrDr", Rhythm(3, SHARE, every=2)),
        ("DDrrDrrDrr", Rhythm(2, SHARE, every=3)),
        ("DDDrrrrrD", Rhythm(3, SHARE, end=1)),
        ("DDrrrrDD", Rhythm(2, SHARE, end=2)),
        ("DDDrDrDrD", Rhythm(3, SHARE, every=2, end=1)),
        ("rrrr", Rhythm(0, SHARE)),
    ],
)
def test_a_rhythm_is_recognised_and_gives_its_shares(text, expected):
    assert Rhythm.of(shares_of(text)) == expected
    assert shown(expected.shares(len(text))) == text


@pytest.mark.parametrize("text", ["", "DDDD", "DDrDDrrD", "DrDrrD"])
def test_other_shares_have_no_rhythm(text):
    assert Rhythm.of(shares_of(text)) is None


def test_two_shares_have_no_rhythm():
    assert Rhythm.of((1.0, 0.5, 0.6)) is None


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("DDDrrrrr", 12, "DDDDDrrrrrrr"),
        ("DDDrrrrrD", 12, "DDDDrrrrrrrD"),
        ("DDDrDrDrD", 12, "DDDDrDrDrDrD"),
        ("DDDrDrDrD", 11, "DDDDrDrDrDD"),
        ("DDDrDrDr", 5, "DDrDr"),
        ("DDrrrrDD", 4, "DDDD"),
    ],
)
def test_it_is_stretched_to_another_number_of_steps(text, steps, expected):
    """The start grows with the number of steps, and the last step stays dense."""
    rhythm = Rhythm.of(shares_of(text))
    assert shown(rhythm.stretched(len(text), steps, 2).shares(steps)) == expected
