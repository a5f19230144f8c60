"""Fixtures of the tests of the interface to ComfyUI."""

import pytest


@pytest.fixture
def info(caplog):
    """The captured log, from level INFO on."""
    with caplog.at_level("INFO"):
        yield caplog
