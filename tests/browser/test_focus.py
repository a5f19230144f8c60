"""Delete removes a selected node also after the mouse was used on a slider in it, in a real browser."""

import pytest
from ras_pack.dev import demo_run as demo

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.parametrize("nodes", ["classic", "nodes2"], indirect=True),
]


@pytest.fixture(scope="module")
def report(drive) -> dict:
    return drive("focus", workflow=str(demo.WORKFLOWS["sd3"]), sampler="RASKSampler")


def test_it_ends_without_errors_of_the_pack(report):
    assert report["end"] == "execution_success"
    assert [text for text in report["problems"] if "/extensions/" in text or "multirate" in text] == []


@pytest.mark.parametrize("slider", ["live", "compare"])
def test_after_a_drag_delete_removes_the_node(report, slider):
    assert report[slider]["byMouse"] == {"isFocused": False, "hasMoved": True, "left": 0}


@pytest.mark.parametrize("slider", ["live", "compare"])
def test_the_keyboard_keeps_the_slider(report, slider):
    assert report[slider]["byKeyboard"] == {"isFocused": True, "left": 1}
