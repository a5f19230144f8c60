"""Pairs of model families and another parameter, where all combinations would take too long."""

from collections.abc import Sequence
from typing import Any

import pytest

from support.families import KINDS


def rotated(name: str, values: Sequence[Any], kinds: Sequence[str] = KINDS) -> pytest.MarkDecorator:
    """Parametrize a test with pairs of a family and a value of the parameter `name`. Every family and every
    value occurs, but not every combination: for settings that act in the same code for all families.
    """
    count = max(len(kinds), len(values))
    pairs = [(kinds[i % len(kinds)], values[i % len(values)]) for i in range(count)]
    return pytest.mark.parametrize(("family", name), pairs, indirect=["family"])
