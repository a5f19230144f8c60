"""Which inputs web/unused_inputs.js greys out: those that have no effect with the chosen speed.

The script runs in Node.js, with stand-ins for the modules of ComfyUI's front end that it imports.
"""

import json
import re

from ras_pack.nodes.settings import OF_CUSTOM
from support.node_js import run_page, web

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
await import("./extensions/pack/unused_inputs.js");
const { nodes, subgraph, then } = JSON.parse(readFileSync(0, "utf8"));
const graphOf = ({ nodes, links }) => {
  const graph = { links: links ?? {}, nodes };
  for (const node of nodes) node.graph = graph;
  return graph;
};
app.graph = graphOf({ nodes });
if (subgraph) {
  const inner = graphOf(subgraph);
  for (const host of nodes.filter((one) => one.comfyClass === "host")) host.subgraph = inner;
}
const everything = [...nodes, ...(subgraph?.nodes ?? [])];
everything.filter((one) => one.comfyClass !== "host").forEach((node) => app.one.nodeCreated(node));
app.one.afterConfigureGraph();
const off = () => everything.map((node) => node.widgets.filter((one) => one.disabled).map((one) => one.name));
const found = [off()];
for (const [index, value, name = "speed"] of then) {
  const speed = everything[index].widgets.find((one) => one.name === name);
  speed.value = value;
  if (speed.callback) speed.callback(value);
  else app.one.afterConfigureGraph();
  found.push(off());
}
console.log(JSON.stringify(found));
"""
API = "export const api = { addEventListener() {} };"
USUAL = {"steps": 28, "cuda_graphs": "auto", **dict.fromkeys(OF_CUSTOM, 0)}
OFF = list(OF_CUSTOM)


def node(kind, widgets, links=None):
    """A node of a graph in the page; `links` has the link of each linked input by name."""
    sockets = [{"name": name, "link": (links or {}).get(name)} for name in widgets]
    return {
        "comfyClass": kind, "inputs": sockets,
        "widgets": [{"name": name, "value": value} for name, value in widgets.items()],
    }  # fmt: skip


def disabled(tmp_path, nodes, then=(), subgraph=None):
    """The names of the disabled widgets of each node: at first, and after each change of a node's speed."""
    given = {"nodes": nodes, "then": list(then), "subgraph": subgraph}
    return run_page(
        tmp_path, PAGE, ("unused_inputs.js", "graph.js", "watch.js"), given, {"scripts/api.js": API}
    )


def test_the_script_has_the_names_of_the_settings():
    told = re.search(r"const OF_CUSTOM = (\[.*?\]);", web("unused_inputs.js"))
    assert tuple(json.loads(told[1])) == OF_CUSTOM


def test_the_scheduler_is_greyed_out_while_a_plan_replaces_its_levels(tmp_path):
    """tests/nodes/test_unused_scheduler.py compares this with runs."""
    settings = {"speed": "2x", **USUAL, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}
    changes = [
        (0, "heun", "sampler_name"), (0, "dpmpp_2m", "sampler_name"), (0, 8, "steps"), (0, 9, "steps"),
        (0, 0.9, "denoise"), (0, 1, "denoise"), (0, "ddim_uniform", "scheduler"), (0, "beta", "scheduler"),
        (0, "custom"),
    ]  # fmt: skip
    expected = [True, False, True, False, True, False, True, False, True, False]
    found = disabled(tmp_path, [node("RASKSampler", settings)], changes)
    assert ["scheduler" in names for (names,) in found] == expected
    (compare,) = disabled(tmp_path, [node("RASCompare", settings)])
    assert compare == [OFF]  # its run without RAS uses the scheduler


def test_they_follow_the_speed(tmp_path):
    sampler = node("RASKSampler", {"speed": "2x", **USUAL})
    found = disabled(tmp_path, [sampler], [(0, "custom"), (0, "3x")])
    assert found == [[OFF], [[]], [OFF]]


def test_a_speed_that_another_node_gives_is_not_known(tmp_path):
    sampler = node("RASKSampler", {"speed": "2x", **USUAL}, {"speed": 1})
    assert disabled(tmp_path, [sampler]) == [[[]]]


def test_other_nodes_keep_their_inputs(tmp_path):
    nodes = [node("RASScheduler", {"speed": "2x", "steps": 28}), node("KSampler", {"speed": "2x", **USUAL})]
    assert disabled(tmp_path, nodes) == [[[], []]]


def test_the_nodes_of_a_subgraph_show_their_own_speed(tmp_path):
    """Two nodes show the same subgraph, with the speed and one more input of the sampler inside. An input
    inside is in use if it is in one of them.
    """
    hosts = [node("host", {"speed": speed, "ratio": 0.5}) for speed in ("2x", "custom")]
    inside = node("RASKSampler", {"speed": "2x", **USUAL}, {"speed": 1, "sample_ratio": 2})
    links = {1: {"origin_id": -10, "origin_slot": 0}, 2: {"origin_id": -10, "origin_slot": 1}}
    found = disabled(tmp_path, hosts, [(1, "3x")], {"nodes": [inside], "links": links})
    assert found == [[["ratio"], [], []], [["ratio"], ["ratio"], OFF]]
