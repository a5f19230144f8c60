"""Estimates in a workflow with a subgraph: whether a model is connected, and what the subgraph's node says.

The scripts run in Node.js, with stand-ins for the modules of ComfyUI's front end and for the badge.
"""

import json

import pytest
from support.node_js import run_page

API = "export const api = { addEventListener() {} };"
ANSWERING = """
export const api = {
  addEventListener() {},
  fetchApi: async () => ({ ok: true, json: async () => (%s) }),
};
"""
BADGE = """
export const told = {};
export const keepShown = () => {};
export const showAt = (node, ...texts) => (told[node.id] = texts);
"""
SETUP = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
const given = JSON.parse(readFileSync(0, "utf8"));
const graphOf = (nodes, links) => {
  const ends = Object.entries(links).map(([id, [origin_id, origin_slot, target_id, target_slot]]) =>
    [id, { origin_id, origin_slot, target_id, target_slot }]);
  const getNodeById = (id) => nodes.find((one) => one.id === id);
  const graph = { nodes, links: Object.fromEntries(ends), getNodeById };
  nodes.forEach((node) => (node.graph = graph));
  return graph;
};
app.graph = graphOf(given.nodes, given.links);
const host = given.nodes.find((one) => one.id === 5);
const inner = (host.subgraph = graphOf(given.inside, given.innerLinks));
inner.outputs = host.outputs.map((_, slot) => {
  const isTo = (link) => link.target_id === -20 && link.target_slot === slot;
  return { linkIds: Object.keys(inner.links).filter((id) => isTo(inner.links[id])) };
});
"""
HAS_MODEL = """
import { hasModel } from "./extensions/pack/model_source.js";
console.log(JSON.stringify(hasModel({ node: given.nodes.find((one) => one.id === 9), path: [] })));
"""
HINT = """
import { told } from "./extensions/pack/hint_badge.js";
globalThis.document = { createElement: () => ({ setAttribute() {} }), head: { append() {} } };
await import("./extensions/pack/hint.js");
for (const node of given.inside) {
  node.addDOMWidget = () => ({});
  app.one.nodeCreated(node);
}
setTimeout(() => console.log(JSON.stringify(told[host.id])), 400);
"""
HOST = 5
INPUT, OUTPUT = -10, -20


def node(number, kind, inputs=(), outputs=0, widgets=None, **more):
    """A node of a graph. `inputs` has the name, the type and the link of each input."""
    return {
        "id": number, "comfyClass": kind, "outputs": [{"links": []} for _ in range(outputs)],
        "inputs": [dict(zip(("name", "type", "link"), each, strict=True)) for each in inputs],
        "widgets": [{"name": name, "value": value} for name, value in (widgets or {}).items()], **more,
    }  # fmt: skip


def has_model(tmp_path, loader, passed_on, inside, inner_links):
    """Whether a model counts as connected to node 9, which gets it from the first output of a subgraph.

    Args:
        loader: whether a loader is linked to the subgraph's input.
        passed_on: whether there is a Reroute after the subgraph.
        inside, inner_links: nodes of the subgraph, and its links.
    """
    nodes = [
        node(1, "UNETLoader", outputs=1),
        node(HOST, "host", [("model", "MODEL", 1 if loader else None)], outputs=1),
        node(7, "Reroute", [("", "*", 2)], outputs=1, isVirtualNode=True),
        node(9, "RASPatchModel", [("model", "MODEL", 3 if passed_on else 2)]),
    ]
    links = {1: (1, 0, HOST, 0), 2: (HOST, 0, 7 if passed_on else 9, 0), 3: (7, 0, 9, 0)}
    given = {"nodes": nodes, "links": links, "inside": inside, "innerLinks": inner_links}
    page = SETUP + HAS_MODEL
    return run_page(tmp_path, page, ("model_source.js", "graph.js"), given, {"scripts/api.js": API})


@pytest.mark.parametrize("passed_on", [False, True], ids=["", "reroute"])
class TestModels:
    def test_a_loader_inside(self, tmp_path, passed_on):
        inside = [node(2, "UNETLoader", outputs=1)]
        assert has_model(tmp_path, False, passed_on, inside, {4: (2, 0, OUTPUT, 0)})

    def test_an_output_without_a_link_inside(self, tmp_path, passed_on):
        inside = [node(2, "UNETLoader", outputs=1)]
        assert not has_model(tmp_path, True, passed_on, inside, {})

    @pytest.mark.parametrize("loader", [True, False])
    def test_a_model_that_passes_straight_through(self, tmp_path, passed_on, loader):
        assert has_model(tmp_path, loader, passed_on, [], {4: (INPUT, 0, OUTPUT, 0)}) is loader

    @pytest.mark.parametrize("loader", [True, False])
    def test_a_model_that_passes_through_a_node_inside(self, tmp_path, passed_on, loader):
        for kind, more in (("LoraLoader", {}), ("Reroute", {"isVirtualNode": True})):
            inside = [node(2, kind, [("model", "MODEL", 4)], outputs=1, **more)]
            links = {4: (INPUT, 0, 2, 0), 5: (2, 0, OUTPUT, 0)}
            assert has_model(tmp_path, loader, passed_on, inside, links) is loader


def told_outside(tmp_path, api, speed, **changes):
    """What a subgraph's node that shows the speed says: its text and its tooltip."""
    inputs = [("model", "MODEL", 1), ("speed", "COMBO", None)]
    nodes = [
        node(1, "UNETLoader", outputs=1), node(HOST, "host", inputs, outputs=1, widgets={"speed": speed}),
    ]  # fmt: skip
    widgets = {"speed": "2x", "steps": 28, "start_percent": 0.2, "end_percent": 1, **changes}
    inside = [node(2, "RASKSampler", [("model", "MODEL", 4), ("speed", "COMBO", 5)], 1, widgets)]
    given = {
        "nodes": nodes, "links": {1: (1, 0, HOST, 0)}, "inside": inside,
        "innerLinks": {4: (INPUT, 0, 2, 0), 5: (INPUT, 1, 2, 1)},
    }  # fmt: skip
    scripts = (
        "hint.js", "graph.js", "model_source.js", "names.js", "samplers.js", "several_samplers.js",
        "unlisted.js", "watch.js", "words.js",
    )  # fmt: skip
    others = {"scripts/api.js": api, "extensions/pack/hint_badge.js": BADGE}
    return run_page(tmp_path, SETUP + HINT, scripts, given, others)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, ["custom: settings inside the node", "custom: settings inside the node"]),
        (1, ["custom: no gain", "custom: no gain, every step computes the whole image"]),
    ],
)
def test_the_subgraphs_node_at_speed_custom(tmp_path, ratio, expected):
    """Its text and its tooltip, which do not name inputs that are in the node inside."""
    assert told_outside(tmp_path, API, "custom", sample_ratio=ratio) == expected


def test_only_the_tooltip_of_the_subgraphs_node_says_why_closeness_is_unknown(tmp_path):
    answer = {"time": 0.5, "steps": 17, "dense": 5, "closeness": None, "unmeasured": "cfg"}
    text, tooltip = told_outside(tmp_path, ANSWERING % json.dumps(answer), "2x")
    assert text == "about 50\u00a0% of the time · 17 steps instead of 28"
    assert "closeness not measured at this cfg" in tooltip and "measured with cfg 3.5" in tooltip
