"""The links that web/turned_off.js adds to a prompt if nodes of the pack are turned off.

The script runs in Node.js, with a stand-in for the module of ComfyUI's front end that it imports. The tests
in browser/test_turned_off_nodes.py run it in a real browser.
"""

import pytest
from support.node_js import run_page

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
await import("./extensions/pack/turned_off.js");
const { nodes, links, output } = JSON.parse(readFileSync(0, "utf8"));
const graph = { links, nodes, getNodeById: (id) => nodes.find((one) => one.id === id) };
app.graphToPrompt = async () => ({ output });
app.one.setup();
console.log(JSON.stringify((await app.graphToPrompt(graph)).output));
"""
MUTED, BYPASSED = 2, 4
LATENT = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 512}}


def node(number, kind, inputs=None, **more):
    """A node of a graph in the page; `inputs` has the link of each input by name."""
    sockets = [{"name": name, "link": link} for name, link in (inputs or {}).items()]
    return {"id": number, "type": kind, "mode": 0, "inputs": sockets, "widgets": [], **more}


def prompt_after(tmp_path, nodes, origins, output):
    """The prompt that the script makes of `output`; `origins` has the origin of each link."""
    links = {link: {"origin_id": origin, "origin_slot": 0} for link, origin in origins.items()}
    given = {"nodes": nodes, "links": links, "output": output}
    return run_page(tmp_path, PAGE, ("turned_off.js", "graph.js"), given)


@pytest.mark.parametrize("mode", [MUTED, BYPASSED], ids=["muted", "bypassed"])
@pytest.mark.parametrize("reroutes", [0, 1, 2])
def test_a_sampler_of_an_empty_latent_is_replaced(tmp_path, mode, reroutes):
    """A bypassed node passes the empty latent on, which would give an image without content."""
    between = [node(3 + i, "Reroute", {"": 3 + i}, isVirtualNode=True) for i in range(reroutes)]
    last = 3 + reroutes
    nodes = [
        node(1, "EmptySD3LatentImage"),
        node(2, "RASKSampler", {"latent_image": 2}, mode=mode),
        *between, node(9, "VAEDecode", {"samples": last}),
    ]  # fmt: skip
    origins = {2: 1, **{link: link - 1 for link in range(3, last + 1)}}
    decoded = {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0]} if mode == BYPASSED else {}}
    found = prompt_after(tmp_path, nodes, origins, {"1": LATENT, "9": decoded})
    assert found["9"]["inputs"] == {"samples": ["2", 0]}
    assert (found["2"]["class_type"], found["2"]["inputs"]) == ("KSampler", {"latent_image": ["1", 0]})


def test_a_second_pass_is_left_out(tmp_path):
    nodes = [
        node(1, "KSampler"),
        node(2, "RASKSampler", {"latent_image": 2}, mode=BYPASSED),
        node(3, "Reroute", {"": 3}, isVirtualNode=True),
        node(9, "VAEDecode", {"samples": 4}),
    ]
    first = {"class_type": "KSampler", "inputs": {}}
    given = {"1": first, "9": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0]}}}
    assert prompt_after(tmp_path, nodes, {2: 1, 3: 2, 4: 3}, given) == given
