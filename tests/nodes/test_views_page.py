"""Which live views web/views.js keeps when the graph changes.

The script runs in Node.js, with stand-ins for the modules that draw and that ask the server.
"""

import pytest
from support.node_js import run_page

API = "export const api = { addEventListener() {} };"
PANEL = """
export class LivePanel {
  constructor(node) {
    Object.assign(this, { node, isRunning: true, finished: {} });
  }
  remove() {}
}
"""
PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
import { dropUnpatched, viewOf, views } from "./extensions/pack/views.js";
const { nodes, links, after, isRunning } = JSON.parse(readFileSync(0, "utf8"));
const graph = { id: "g", links, nodes, getNodeById: (id) => nodes.find((one) => one.id === id) };
app.graph = graph;
for (const node of nodes) Object.assign(node, { graph, addDOMWidget() {} });
viewOf("9").each((panel) => (panel.isRunning = isRunning));
dropUnpatched();
const before = views.size;
Object.assign(links, after);
dropUnpatched();
console.log(JSON.stringify([before, views.size]));
"""
PATCH, LORA, LOADER = 2, 3, 1


def node(number, kind, link=None):
    return {"id": number, "comfyClass": kind, "inputs": [{"name": "model", "type": "MODEL", "link": link}]}


def views_after(tmp_path, links, after, sampler="KSampler", is_running=False):
    """The number of views of a sampler's run before and after a change of the graph.

    Args:
        links: the origin of each link: link 1 ends at RAS Patch Model, 2 at a LoRA loader, 3 at the sampler.
        after: the links that change.
    """
    nodes = [
        node(LOADER, "UNETLoader"), node(PATCH, "RASPatchModel", 1), node(LORA, "LoraLoaderModelOnly", 2),
        node(9, sampler, 3),
    ]  # fmt: skip

    def origins(given):
        return {link: {"origin_id": origin, "origin_slot": 0} for link, origin in given.items()}

    given = {"nodes": nodes, "links": origins(links), "after": origins(after), "isRunning": is_running}
    scripts = ("views.js", "graph.js")
    others = {"scripts/api.js": API, "extensions/pack/live_panel.js": PANEL}
    return run_page(tmp_path, PAGE, scripts, given, others)


CHAIN = {1: LOADER, 2: PATCH, 3: LORA}


def test_a_sampler_that_is_no_longer_patched_loses_its_view(tmp_path):
    assert views_after(tmp_path, CHAIN, {2: LOADER}) == [1, 0]
    assert views_after(tmp_path, {1: LOADER, 3: PATCH}, {3: LOADER}) == [1, 0]


@pytest.mark.parametrize("after", [{}, {3: PATCH}], ids=["unchanged", "still patched"])
def test_a_patched_sampler_keeps_it(tmp_path, after):
    assert views_after(tmp_path, CHAIN, after) == [1, 1]


def test_a_running_view_stays(tmp_path):
    assert views_after(tmp_path, CHAIN, {2: LOADER}, is_running=True) == [1, 1]


def test_a_view_stays_if_no_link_led_to_the_patch(tmp_path):
    """As with RAS KSampler, or with nodes that pass values on without links."""
    links = {1: LOADER, 2: LOADER, 3: LORA}
    assert views_after(tmp_path, links, {3: LOADER}, sampler="RASKSampler") == [1, 1]
