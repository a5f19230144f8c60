"""The tests of adapters use not only each model family, but also the variants of a family."""

import pytest
from support.families import FAMILIES, Family


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    """Every supported family and variant in turn, as a tiny model."""
    return FAMILIES[request.param]
