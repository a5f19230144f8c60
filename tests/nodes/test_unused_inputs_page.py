"""Which inputs web/unused_inputs.js greys out: those that have no effect with the chosen speed.

The script runs in Node.js, with stand-ins for the modules of ComfyUI's front end that it imports.
"""

import json
import re

import pytest
from ras_pack.nodes.settings import OF_CUSTOM
from support.node_js import run_page, web

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
await import("./extensions/pack/unused_inputs.js");
const { nodes, subgraph, then } = JSON.parse(readFileSync(0, "utf8"));
const graphOf = ({ nodes, links }) => {
  const graph = { links: links ?? {}, nodes, getNodeById: (id) => nodes[id] };
  for (const node of nodes) node.graph = graph;
  return graph;
};
app.graph = graphOf({ nodes });
if (subgraph) {
  const inner = graphOf(subgraph);
  const hosts = nodes.filter((one) => one.comfyClass === "host");
  const linksOf = (slot) => Object.keys(inner.links).filter((id) => inner.links[id].origin_slot === slot);
  inner.inputs = hosts[0].inputs.map((_, slot) => ({ linkIds: linksOf(slot) }));
  for (const host of hosts) host.subgraph = inner;
}
const everything = [...nodes, ...(subgraph?.nodes ?? [])];
everything.filter((one) => one.comfyClass !== "host").forEach((node) => app.one.nodeCreated(node));
app.one.afterConfigureGraph();
const off = () => everything.map((node) => node.widgets.filter((one) => one.disabled).map((one) => one.name));
const found = [off()];
for (const [index, value, name = "speed"] of then) {
  const named = (list) => list.find((one) => one.name === name);
  const [speed, input] = [named(everything[index].widgets), named(everything[index].inputs)];
  if (value === null) input.link = null;
  else speed.value = value;
  if (speed.callback && value !== null) speed.callback(value);
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
    """The names of the disabled widgets of each node: at first, and after each change.

    Args:
        then: the changes: the number of a node, the value of its speed, or of the widget of a third name.
            If the value is None, the link of the widget is removed.
    """
    given = {"nodes": nodes, "then": list(then), "subgraph": subgraph}
    return run_page(
        tmp_path, PAGE, ("unused_inputs.js", "graph.js", "watch.js"), given, {"scripts/api.js": API}
    )


def subgraph_of(nodes, slots):
    """A subgraph of these nodes. `slots` has, by link, the subgraph's input that it comes from."""
    links = {
        one["link"]: {
            "origin_id": -10, "origin_slot": slots[one["link"]], "target_id": i, "target_slot": slot,
        }
        for i, each in enumerate(nodes) for slot, one in enumerate(each["inputs"]) if one["link"]
    }  # fmt: skip
    return {"nodes": [*nodes], "links": links}


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
    found = disabled(tmp_path, hosts, [(1, "3x")], subgraph_of([inside], {1: 0, 2: 1}))
    assert found == [[["ratio"], [], []], [["ratio"], ["ratio"], OFF]]


PLANNED_RUN = {"speed": "2x", **USUAL, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}


def host_of(*inside):
    """A subgraph's node that shows the scheduler of all nodes inside, and its subgraph."""
    links = [{one["name"]: one["link"] for one in each["inputs"]}["scheduler"] for each in inside]
    return [node("host", {"levels": "simple"})], subgraph_of(inside, dict.fromkeys(links, 0))


@pytest.mark.parametrize("ras_link", [1, 2])
def test_an_input_that_another_node_inside_uses_stays_usable(tmp_path, ras_link):
    ras = node("RASKSampler", PLANNED_RUN, {"scheduler": ras_link})
    plain = node("KSampler", {"scheduler": "simple"}, {"scheduler": 3 - ras_link})
    for inside, expected in (([ras], ["levels"]), ([ras, plain], [])):
        host, subgraph = host_of(*inside)
        ((shown, within, *_),) = disabled(tmp_path, host, (), subgraph)
        assert shown == expected and within == [*OFF, "scheduler"]


@pytest.mark.parametrize("speeds", [("2x", "custom"), ("custom", "2x"), ("2x", "3x")])
def test_an_input_of_two_samplers_is_unused_if_both_ignore_it(tmp_path, speeds):
    settings = [PLANNED_RUN | {"speed": speed} for speed in speeds]
    inside = [node("RASKSampler", one, {"scheduler": link}) for link, one in enumerate(settings, 1)]
    host, subgraph = host_of(*inside)
    found = disabled(tmp_path, host, [(1, "2x"), (2, "2x"), (1, "custom")], subgraph)
    before = [] if "custom" in speeds else ["levels"]
    after_one = ["levels"] if speeds[1] != "custom" else []
    assert [shown for shown, *_ in found] == [before, after_one, ["levels"], []]


def test_an_input_that_no_longer_leads_to_the_sampler_is_usable_again(tmp_path):
    host, subgraph = host_of(node("RASKSampler", PLANNED_RUN, {"scheduler": 1}))
    found = disabled(tmp_path, host, [(1, None, "scheduler")], subgraph)
    assert [shown for shown, _ in found] == [["levels"], []]
