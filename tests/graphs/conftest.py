"""The tests of captured calls use not only each kind of network, but also the variants of a family."""

import pytest
from support.families import FAMILIES, KINDS, VARIANTS, Family


@pytest.fixture(params=(*KINDS, *VARIANTS))
def family(request: pytest.FixtureRequest) -> Family:
    """A tiny model of each kind and variant in turn."""
    return FAMILIES[request.param]
