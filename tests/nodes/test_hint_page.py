"""The line in a node, as web/hint.js makes it: what it asks the server about a graph, and what it shows.

The script runs in Node.js, with stand-ins for the two modules of ComfyUI's front end that it imports.
"""

import pytest
from support.node_js import run_page

API = """
export const asked = [];
export const answers = [];
export const api = {
  addEventListener() {},
  async fetchApi(url) {
    asked.push(Object.fromEntries(new URL(url, "http://x").searchParams));
    const answer = Array.isArray(answers[0]) ? answers[0][asked.length - 1] : answers[0];
    return { ok: answer !== null, json: async () => answer };
  },
};
"""
PAGE = """
import { readFileSync } from "node:fs";
import { answers, asked } from "./scripts/api.js";
import { app } from "./scripts/app.js";
globalThis.document = {
  createElement: () => ({ setAttribute() {} }),
  head: { append() {} },
};
await import("./extensions/pack/hint.js");
const { nodes, links, answer, then } = JSON.parse(readFileSync(0, "utf8"));
answers.push(answer);
const graph = { links, nodes, getNodeById: (id) => nodes.find((one) => one.id === id) };
app.graph = graph;
let element;
for (const node of nodes) {
  node.graph = graph;
  node.addDOMWidget = (name, type, made) => { element = made; return {}; };
}
app.one.nodeCreated(nodes.find((one) => one.comfyClass.startsWith("RAS")));
const log = () => console.log(JSON.stringify({ asked, text: element.textContent, tooltip: element.title }));
setTimeout(() => {
  if (!then) return log();
  answers[0] = then.answer;
  nodes.at(-1).widgets.find((one) => one.name === "steps").value = then.steps;
  app.one.afterConfigureGraph();
  setTimeout(log, 400);
}, 400);
"""
SCRIPTS = (
    "hint.js", "hint_badge.js", "graph.js", "model_source.js", "names.js", "samplers.js",
    "several_samplers.js", "unlisted.js", "watch.js", "words.js",
)  # fmt: skip
GAINS = {"time": 0.5, "steps": 17, "dense": 6, "closeness": None}
STAYS_OUT = {"time": 1.0, "steps": 4, "dense": 4, "closeness": None}
CALIBRATE = "RAS Calibrate measures your own model."
NO_GAIN = "no gain with so few steps: the run is the same as without RAS"


def node(number, kind, widgets=None, inputs=None, outputs=None):
    """A node of a graph in the page.

    Args:
        inputs: by name: the type and the link, or None for no link.
        outputs: by type: the links.
    """
    return {
        "id": number, "comfyClass": kind,
        "widgets": [{"name": name, "value": value} for name, value in (widgets or {}).items()],
        "inputs": [{"name": name, "type": of, "link": link} for name, (of, link) in (inputs or {}).items()],
        "outputs": [{"type": of, "links": links} for of, links in (outputs or {}).items()],
    }  # fmt: skip


def shown(tmp_path, nodes, answer, then=None):
    """What the node with the line asks about the graph, and the text that it shows for the answer."""
    found = page_of(tmp_path, nodes, answer, then)
    return found["asked"], found["text"]


def page_of(tmp_path, nodes, answer, then=None):
    """What the node with the line `asked` about the graph, and the `text` and `tooltip` that it shows.

    Args:
        answer: the server's answer, or one for each question; None if the server refuses the question.
        then: the last node's number of steps after a change, and the answer to it.
    """
    links = {
        link: {"origin_id": origin["id"], "target_id": target["id"]}
        for origin in nodes for target in nodes
        for output in origin["outputs"] for link in output["links"]
        if link in [one["link"] for one in target["inputs"]]
    }  # fmt: skip
    given = {"nodes": nodes, "links": links, "answer": answer, "then": then}
    return run_page(tmp_path, PAGE, SCRIPTS, given, {"scripts/api.js": API})


def patch(plan=None):
    inputs = {"model": ("MODEL", 1), "plan": ("RAS_PLAN", plan)}
    return node(2, "RASPatchModel", {"speed": "2x"}, inputs, {"MODEL": [2]})


def custom(**changes):
    widgets = {"speed": "custom", "sample_ratio": 0.5, "start_percent": 0.2, "end_percent": 1, **changes}
    return node(2, "RASPatchModel", widgets, {"model": ("MODEL", 1)}, {"MODEL": [2]})


LOADER = node(1, "UNETLoader", {"unet_name": "x.safetensors"}, outputs={"MODEL": [1]})
FACTS = {"speed": "2x", "file": "x.safetensors"}


def ksampler(**changes):
    widgets = {"steps": 4, "sampler_name": "euler", "denoise": 1, **changes}
    return node(3, "KSampler", widgets, {"model": ("MODEL", 2)})


def custom_sampler():
    """SamplerCustomAdvanced, which gets the model through a guider. Its scheduler has no model."""
    inputs = {"guider": ("GUIDER", 3), "sampler": ("SAMPLER", 4), "sigmas": ("SIGMAS", 6)}
    return [
        node(3, "CFGGuider", {"cfg": 1}, {"model": ("MODEL", 2)}, {"GUIDER": [3]}),
        node(4, "KSamplerSelect", {"sampler_name": "euler"}, outputs={"SAMPLER": [4]}),
        node(5, "Flux2Scheduler", {"steps": 4}, outputs={"SIGMAS": [5]}),
        node(6, "FlipSigmas", {}, {"sigmas": ("SIGMAS", 5)}, {"SIGMAS": [6]}),
        node(7, "SamplerCustomAdvanced", {}, inputs),
    ]


def test_few_steps(tmp_path):
    (asked,), text = shown(tmp_path, [LOADER, patch(), ksampler()], STAYS_OUT)
    assert asked.items() >= {**FACTS, "steps": "4", "sampler": "euler", "denoise": "1"}.items()
    assert text == NO_GAIN


def test_few_steps_with_a_connected_plan(tmp_path):
    plan = node(9, "RASCalibrate", outputs={"RAS_PLAN": [9]})
    assert shown(tmp_path, [LOADER, patch(plan=9), ksampler(), plan], STAYS_OUT)[1] == NO_GAIN


def test_a_connected_plan(tmp_path):
    plan = node(9, "RASCalibrate", outputs={"RAS_PLAN": [9]})
    _, text = shown(tmp_path, [LOADER, patch(plan=9), ksampler(steps=28), plan], GAINS)
    assert text == "the connected plan applies"


def test_a_gain(tmp_path):
    _, text = shown(tmp_path, [LOADER, patch(), ksampler(steps=28)], GAINS)
    assert text == "about 50\u00a0% of the time · 17 steps instead of 28"


def test_a_comparison_says_which_of_its_runs_it_estimates(tmp_path):
    widgets = {"speed": "2x", "steps": 28, "sampler_name": "euler", "denoise": 1}
    nodes = [LOADER, node(2, "RASCompare", widgets, {"model": ("MODEL", 1)})]
    asked, text = shown(tmp_path, nodes, GAINS)
    assert asked[-1].items() >= {**FACTS, "steps": "28", "denoise": "1", "sampler": "euler"}.items()
    assert text == "with RAS: about 50\u00a0% of the time · 17 steps instead of 28"


def test_an_estimate_of_other_settings_does_not_stay(tmp_path):
    nodes = [LOADER, patch(), ksampler(steps=28)]
    asked, text = shown(tmp_path, nodes, GAINS, {"steps": 20000, "answer": None})
    assert [one["steps"] for one in asked] == ["28", "20000"] and text == ""


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"sample_ratio": 1}, 28), ({"start_percent": 1}, 28), ({"start_percent": 0.95}, 10),
        ({"end_percent": 0.3}, 9), ({}, 2), ({"sample_ratio": 1}, None),
    ],
)  # fmt: skip
def test_custom_settings_without_a_regional_step(tmp_path, changes, steps):
    _, text = shown(tmp_path, [LOADER, custom(**changes), ksampler(steps=steps)], GAINS)
    assert text == "custom: no gain, every step computes the whole image"


@pytest.mark.parametrize(
    ("changes", "steps"), [({}, 28), ({"start_percent": 0.9}, 10), ({"end_percent": 0.3}, 10), ({}, 3)]
)
def test_custom_settings_with_a_regional_step(tmp_path, changes, steps):
    asked, text = shown(tmp_path, [LOADER, custom(**changes), ksampler(steps=steps)], GAINS)
    assert asked == [] and text == "custom: the advanced inputs apply"


def test_a_linked_custom_setting_is_not_known(tmp_path):
    ratio = node(9, "PrimitiveFloat", {"value": 0.5}, outputs={"FLOAT": [9]})
    linked = custom(sample_ratio=1)
    linked["inputs"].append({"name": "sample_ratio", "type": "FLOAT", "link": 9})
    _, text = shown(tmp_path, [LOADER, linked, ksampler(steps=28), ratio], GAINS)
    assert text == "custom: the advanced inputs apply"


def test_steps_and_sampler_of_custom_sampling_nodes(tmp_path):
    (asked,), text = shown(tmp_path, [LOADER, patch(), *custom_sampler()], STAYS_OUT)
    assert asked.items() >= {**FACTS, "steps": "4", "sampler": "euler", "denoise": ""}.items()
    assert text == NO_GAIN


def test_nothing_is_estimated_without_a_model(tmp_path):
    """Before the node are a node that passes a model on, and one that has no model either."""
    for nodes, expected in (
        ([node(1, "LoraLoader", {}, {"model": ("MODEL", None)}, {"MODEL": [1]})], ""),
        ([reroute(None)], ""),
        ([LOADER_9, reroute(9)], "about 50\u00a0% of the time · 17 steps instead of 28"),
        ([optional_model()], "about 50\u00a0% of the time · 17 steps instead of 28"),
    ):
        assert page_of(tmp_path, [*nodes, patch(), ksampler(steps=28)], GAINS)["text"] == expected


def reroute(link):
    return {**node(1, "Reroute", {}, {"": ("*", link)}, {"MODEL": [1]}), "isVirtualNode": True}


def optional_model():
    """A loader with an input for a model to merge."""
    found = node(1, "Loader", {"unet_name": "x.safetensors"}, {"model": ("MODEL", None)}, {"MODEL": [1]})
    found["inputs"][0]["shape"] = 7
    return found


LOADER_9 = node(9, "UNETLoader", {"unet_name": "x.safetensors"}, outputs={"MODEL": [9]})
CLOSE = {**GAINS, "closeness": 35}


def test_without_a_sampler_only_the_time_is_known(tmp_path):
    found = page_of(tmp_path, [LOADER, patch()], CLOSE)
    (asked,) = found["asked"]
    assert asked.items() >= {**FACTS, "steps": "28", "sampler": ""}.items()
    assert found["text"] == "about 50\u00a0% of the time" and "dB" not in found["tooltip"]


def test_the_tooltip_says_why_250_steps_are_the_measure(tmp_path):
    found = page_of(tmp_path, [LOADER, patch(), ksampler(steps=28)], CLOSE)
    assert found["text"].endswith(" · almost the image of 250 steps")
    assert "Beyond 250 steps, an image hardly changes" in found["tooltip"]
    assert "almost, close to, similar to, roughly the image" in found["tooltip"]  # how the words rank
    assert "a PSNR of 35 dB" in found["tooltip"] and "converged" not in found["tooltip"]


@pytest.mark.parametrize(
    ("word", "in_line", "why"),
    [
        ("cfg", "closeness not measured at this cfg", "Closeness was measured with cfg 3.5"),
        ("few", "few steps: no region is skipped", "With few steps, each step computes the whole image"),
        ("small", "small image: no region is skipped", "With a small image, each step computes"),
        ("low", "few steps: closeness unknown", "not measured for runs of so few steps"),
        ("sampler", None, "with euler and dpmpp_2m only"),
        ("inpainting", None, "not measured with inpainting"),
        ("family", None, "the model's family was not measured"),
        ("a later word", None, "RAS Calibrate measures"),
    ],
)
def test_why_closeness_is_unknown(tmp_path, word, in_line, why):
    answer = {**GAINS, "unmeasured": word}
    found = page_of(tmp_path, [LOADER, patch(), ksampler(steps=28)], answer)
    told = ["about 50\u00a0% of the time", "17 steps instead of 28", *filter(None, [in_line])]
    assert found["text"] == " · ".join(told)
    assert why in found["tooltip"]


def test_closeness_of_a_run_of_an_unknown_number_of_steps(tmp_path):
    found = page_of(tmp_path, [LOADER, patch()], {**GAINS, "unmeasured": "cfg"})
    assert found["text"] == "about 50\u00a0% of the time"
    assert "it depends on the number of steps" in found["tooltip"]


def test_a_missing_file(tmp_path):
    answer = {**GAINS, "unmeasured": "family", "unknown": True}
    found = page_of(tmp_path, [LOADER, patch(), ksampler(steps=28)], answer)
    assert found["text"] == "about 50\u00a0% of the time"
    assert "the model's file is missing" in found["tooltip"]


def test_without_a_sampler_a_measured_plan_has_no_closeness(tmp_path):
    found = page_of(tmp_path, [LOADER, patch()], {**GAINS, "measured": 21.3})
    assert found["text"] == "about 50\u00a0% of the time · measured on your model"
    assert "RAS Calibrate measured" in found["tooltip"] and "dB" not in found["tooltip"]


def linked_steps(kind, **changes):
    """A sampler whose steps come from another node; its own widget still has an old number."""
    sampler = ksampler(steps=28)
    sampler["inputs"].append({"name": "steps", "type": "INT", "link": 9})
    return [LOADER, patch(), sampler, node(9, kind, {"value": 20}, outputs={"INT": [9]}) | changes]


@pytest.mark.parametrize("virtual", [False, True], ids=["a node", "the front end's own primitive"])
def test_linked_steps(tmp_path, virtual):
    nodes = linked_steps("PrimitiveInt", isVirtualNode=virtual)
    (asked,), text = shown(tmp_path, nodes, {**GAINS, "steps": 12})
    assert asked["steps"] == "20" and text == "about 50\u00a0% of the time · 12 steps instead of 20"


def test_linked_steps_that_a_node_computes(tmp_path):
    _, text = shown(tmp_path, linked_steps("Computes", widgets=[]), CLOSE)
    assert text == "about 50\u00a0% of the time"


def test_steps_that_become_known(tmp_path):
    """The server's answer is the same as before, when it was asked about a usual run."""
    unknown = ksampler(steps=None) | {"outputs": [], "widgets": [{"name": "steps", "value": None}]}
    _, text = shown(tmp_path, [LOADER, patch(), unknown], GAINS, {"steps": 28, "answer": GAINS})
    assert text == "about 50\u00a0% of the time · 17 steps instead of 28"


def two_passes(**changes):
    """A second sampler after the first. RAS Patch Model is connected to the second one first."""
    second = ksampler(steps=14, denoise=0.7, **changes) | {"id": 4, "title": "Second pass"}
    second["inputs"] = [
        {"name": "model", "type": "MODEL", "link": 3}, {"name": "latent_image", "type": "LATENT", "link": 4},
    ]  # fmt: skip
    first = ksampler(steps=28) | {"title": "KSampler", "outputs": [{"type": "LATENT", "links": [4]}]}
    patched = patch() | {"outputs": [{"type": "MODEL", "links": [3, 2]}]}
    return [LOADER, patched, first, second]


LESS = {"time": 0.57, "steps": 8, "dense": 2, "closeness": None}


def test_two_samplers_have_an_estimate_each_in_their_order(tmp_path):
    found = page_of(tmp_path, two_passes(), [GAINS, LESS])
    assert [one["steps"] for one in found["asked"]] == ["28", "14"]
    assert (
        found["text"] == "about 50\u00a0% of the time · KSampler\nabout 57\u00a0% of the time · Second pass"
    )
    first, second, source, note = found["tooltip"].split("\n")
    assert first == "KSampler: about 50\u00a0% of the time · 17 steps instead of 28"
    assert second == "Second pass: about 57\u00a0% of the time · 8 steps instead of 14"
    assert source.startswith("Estimated from the plan for 2x") and note == CALIBRATE


def test_a_second_sampler_without_a_gain(tmp_path):
    found = page_of(tmp_path, two_passes(), [GAINS, STAYS_OUT])
    assert found["text"] == "about 50\u00a0% of the time · KSampler\nno gain · Second pass"
    _, second, source, note = found["tooltip"].split("\n")
    assert second == f"Second pass: {NO_GAIN}" and source.startswith("KSampler: Estimated from the plan")
    assert note == CALIBRATE  # it is of no sampler


def test_equal_titles_have_the_samplers_ids(tmp_path):
    nodes = two_passes()
    nodes[-1]["title"] = "KSampler"
    found = page_of(tmp_path, nodes, [GAINS, LESS])
    assert (
        found["text"]
        == "about 50\u00a0% of the time · KSampler #3\nabout 57\u00a0% of the time · KSampler #4"
    )
    names = [line.partition(":")[0] for line in found["tooltip"].split("\n")]
    assert names[:2] == ["KSampler #3", "KSampler #4"]


def test_different_sources_say_of_which_sampler_they_are(tmp_path):
    """A long run and a short one take the same share of time, only the closeness of the first is known."""
    found = page_of(tmp_path, two_passes(), [CLOSE, {**LESS, "time": 0.5}])
    assert found["text"] == "about 50\u00a0% of the time"
    sources = found["tooltip"].split("\n")[2:4]
    assert [source.partition(": ")[0] for source in sources] == ["KSampler", "Second pass"]
    assert "35 dB" in sources[0] and "dB" not in sources[1]


def test_what_is_of_no_sampler_is_said_once(tmp_path):
    nodes = two_passes()
    nodes[-1]["widgets"][0]["value"] = 28
    found = page_of(tmp_path, nodes, [CLOSE, {**CLOSE, "closeness": 29}])
    assert found["text"] == "about 50\u00a0% of the time · 17 steps instead of 28"
    *sources, reference, note = found["tooltip"].split("\n")[2:]
    assert "35 dB" in sources[0] and "29 dB" in sources[1] and len(sources) == 2
    assert reference.startswith("Beyond 250 steps") and note == CALIBRATE


def test_equal_sources_are_one(tmp_path):
    same = {**LESS, "time": 0.5}
    lines = page_of(tmp_path, two_passes(), [same, {**same, "steps": 9}])["tooltip"].split("\n")
    assert len(lines) == 4 and lines[2].startswith("Estimated from the plan")


def masked(nodes):
    """The same with a mask for the latent of the last sampler."""
    latents = [one for one in nodes[-1]["inputs"] if one["type"] == "LATENT"]
    given = {"samples": ("LATENT", latents[0]["link"] if latents else None)}
    mask = node(9, "SetLatentNoiseMask", inputs=given, outputs={"LATENT": [9]})
    kept = [one for one in nodes[-1]["inputs"] if one["type"] != "LATENT"]
    nodes[-1]["inputs"] = [*kept, {"name": "latent_image", "type": "LATENT", "link": 9}]
    return [nodes[0], mask, *nodes[1:]]


def test_inpainting(tmp_path):
    found = page_of(tmp_path, masked([LOADER, patch(), ksampler(steps=20)]), {**GAINS, "steps": 10})
    assert found["asked"][0]["inpainting"] == "1"
    assert found["text"] == "about 50\u00a0% of the time · 10 steps instead of 20 (inpainting)"


def test_inpainting_in_one_of_two_samplers_that_take_the_same_share(tmp_path):
    nodes = masked(two_passes())
    _, text = shown(tmp_path, nodes, [GAINS, {**LESS, "time": 0.5}])
    assert text == "about 50\u00a0% of the time · KSampler\n50\u00a0% (inpainting) · Second pass"


def test_inpainting_without_a_gain(tmp_path):
    """Other samplers than euler and dpmpp_2m have no plans, and keep their steps."""
    answer = {"time": 1.0, "steps": None, "dense": None, "closeness": None}
    nodes = masked([LOADER, patch(), ksampler(steps=20, sampler_name="uni_pc")])
    assert shown(tmp_path, nodes, answer)[1] == "no gain (inpainting)"


def test_two_samplers_with_the_same_estimate(tmp_path):
    assert shown(tmp_path, two_passes(), [GAINS, {**LESS, "time": 0.5}])[1] == "about 50\u00a0% of the time"
    _, text = shown(tmp_path, two_passes(), STAYS_OUT)
    assert text == NO_GAIN


def test_a_sampler_that_is_turned_off_does_not_count(tmp_path):
    nodes = two_passes()
    nodes[-1]["mode"] = 4  # bypassed
    (asked,), text = shown(tmp_path, nodes, GAINS)
    assert asked["steps"] == "28" and text == "about 50\u00a0% of the time · 17 steps instead of 28"


def test_a_scheduler_with_the_model_is_no_second_sampler(tmp_path):
    scheduler = node(5, "BasicScheduler", {"steps": 4}, {"model": ("MODEL", 7)}, {"SIGMAS": [5]})
    nodes = [one if one["id"] != 5 else scheduler for one in custom_sampler()]
    patched = patch() | {"outputs": [{"type": "MODEL", "links": [7, 2]}]}
    (asked,), text = shown(tmp_path, [LOADER, patched, *nodes], STAYS_OUT)
    assert asked.items() >= {**FACTS, "steps": "4", "sampler": "euler"}.items() and text == NO_GAIN


def test_a_node_with_settings_of_its_own(tmp_path):
    """It replaces those of RAS Patch Model, unless it is turned off."""
    sampler = ksampler(steps=28) | {"comfyClass": "RASCompare", "title": "RAS Compare"}
    asked, text = shown(tmp_path, [LOADER, patch(), sampler], GAINS)
    assert asked == [] and text == "no effect: RAS Compare has its own settings"
    _, text = shown(tmp_path, [LOADER, patch(), sampler | {"mode": 2}], GAINS)
    assert text == "about 50\u00a0% of the time · 17 steps instead of 28"


def test_a_second_patch(tmp_path):
    second = node(4, "RASPatchModel", {"speed": "3x"}, {"model": ("MODEL", 2)}, {"MODEL": [3]})
    sampler = ksampler(steps=28)
    sampler["inputs"][0]["link"] = 3
    nodes = [LOADER, patch(), second | {"title": "RAS Patch Model"}, sampler]
    assert shown(tmp_path, nodes, GAINS)[1] == "no effect: RAS Patch Model has its own settings"
    nodes[2]["mode"] = 4  # bypassed
    assert shown(tmp_path, nodes, GAINS)[1] == "about 50\u00a0% of the time · 17 steps instead of 28"


def test_a_sampler_beside_a_comparison(tmp_path):
    compare = ksampler(steps=20) | {"id": 4, "comfyClass": "RASCompare", "title": "RAS Compare"}
    compare["inputs"] = [{"name": "model", "type": "MODEL", "link": 3}]
    patched = patch() | {"outputs": [{"type": "MODEL", "links": [3, 2]}]}
    found = page_of(tmp_path, [LOADER, patched, ksampler(steps=28), compare], GAINS)
    assert [one["steps"] for one in found["asked"]] == ["28"]
    assert found["text"] == "about 50\u00a0% of the time · 17 steps instead of 28"
    assert found["tooltip"].split("\n")[2:] == ["no effect: RAS Compare has its own settings"]
