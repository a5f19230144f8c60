"""How web/hint_badge.js breaks an estimate into lines that are no wider than a node.

The script runs in Node.js; each letter is one pixel wide.
"""

import pytest
from support.node_js import run_page

PAGE = """
import { readFileSync } from "node:fs";
import { wrapped } from "./extensions/pack/hint_badge.js";
const { text, room } = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(wrapped(text, room, (text) => [...text].length)));
"""
TEXT = "about 50 % of the time · 10 steps instead of 16"


@pytest.mark.parametrize(
    ("room", "lines"),
    [
        (47, [TEXT]),
        (46, ["about 50 % of the time", "10 steps instead of 16"]),
        (11, ["about 50 %…", "10 steps i…"]),
        (0, ["…", "…"]),
    ],
)
def test_lines(tmp_path, room, lines):
    found = run_page(tmp_path, PAGE, ("hint_badge.js",), {"text": TEXT, "room": room})
    assert found == lines


def test_a_line_of_the_text_stays_one(tmp_path):
    found = run_page(tmp_path, PAGE, ("hint_badge.js",), {"text": "one · two\nthree", "room": 99})
    assert found == ["one · two", "three"]
