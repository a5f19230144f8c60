"""How live views share a node, as web/panel_room.js counts their heights and names them.

The script runs in Node.js, with stand-ins for the node and the views.
"""

import pytest
from support.node_js import run_page

PAGE = """
import { readFileSync } from "node:fs";
import { roomOf } from "./extensions/pack/panel_room.js";
const { titles, ids, isNodes2, rest } = JSON.parse(readFileSync(0, "utf8"));
globalThis.LiteGraph = { vueNodesMode: isNodes2 };
class Node {
  size = [200, 100];
  setSize(size) { this.size = size; }
  computeSize() { return [200, 80]; }
}
const node = new Node();
const room = roomOf(node);
const panels = titles.map((title, i) => ({
  title, id: ids[i] ?? String(i + 3), isBelow: !isNodes2, widget: {}, heading: "",
  height() { return this.heading ? 320 : 300; },
  entitle(text) { this.heading = text; },
}));
for (const panel of panels) {
  room.add(panel);
  if (!isNodes2) room.extendLayout();
  room.fit();
  // Nodes 2.0 measures the node's element instead.
  if (isNodes2) node.size[1] = 100 + room.height;
}
const found = { headings: panels.map((one) => one.heading), tops: panels.map((one) => one.widget.y) };
found.heights = [[node.size[1], room.growth]];
for (const index of rest) {
  room.remove(panels[index]);
  found.heights.push([node.size[1], room.growth]);
}
console.log(JSON.stringify({ ...found, left: panels[rest.at(-1)]?.heading }));
"""


def room(tmp_path, titles, remove=(), nodes2=False, ids=()):
    """What a room makes of panels with these titles, and of the removal of some of them, by index."""
    given = {"titles": titles, "ids": list(ids), "isNodes2": nodes2, "rest": list(remove)}
    return run_page(tmp_path, PAGE, ("panel_room.js", "names.js"), given)


def test_a_single_view_has_no_title(tmp_path):
    assert room(tmp_path, ["KSampler"])["headings"] == [""]


def test_several_have_the_samplers_titles(tmp_path):
    assert room(tmp_path, ["KSampler", "Upscale"])["headings"] == ["KSampler", "Upscale"]


def test_equal_titles_have_the_samplers_numbers(tmp_path):
    headings = room(tmp_path, ["KSampler", "Upscale", "KSampler"])["headings"]
    assert headings == ["KSampler #3", "Upscale", "KSampler #5"]


@pytest.mark.parametrize(
    ("ids", "headings"),
    [
        (["8:4", "8:5"], ["KSampler #4", "KSampler #5"]),
        (["8:4", "9:4"], ["KSampler #8:4", "KSampler #9:4"]),
        (["4", "9:4"], ["KSampler #4", "KSampler #9:4"]),
    ],
    ids=["in one subgraph", "in the same subgraph of two nodes", "outside of one and inside"],
)
def test_numbers_of_samplers_in_subgraphs_are_as_long_as_necessary(tmp_path, ids, headings):
    assert room(tmp_path, ["KSampler"] * 2, ids=ids)["headings"] == headings


def test_they_are_below_each_other(tmp_path):
    found = room(tmp_path, ["a", "b"])
    assert found["tops"] == [80, 400] and found["heights"] == [[720, 620]]


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_each_gives_its_height_back(tmp_path, nodes2, order):
    (all_of_them, _), (one, _), (none, growth) = room(tmp_path, ["a", "b"], order, nodes2)["heights"]
    assert all_of_them > one > none == 100 and growth == 0
