// Keeps a graph runnable if nodes of the pack are turned off (bypassed or muted), for a comparison without RAS.
//
// A bypassed node passes its inputs on, but a muted one does not, so that the sampler behind a muted RAS Patch Model
// would lack its model. Here, a muted RAS Patch Model or RAS Trace passes its input on as well. RAS Multirate Sampler
// and RAS Scheduler have no input to pass on: turned off, they are replaced by ComfyUI's nodes of the same kind. So are
// RAS Compare, and a muted RAS KSampler. A bypassed RAS KSampler passes its latent on, as ComfyUI's KSampler does, so
// that a second pass can be left out; but if this latent is empty, there would be no image, and it is replaced too.
//
// A node is replaced only if a node that is turned on needs its output.

import { app } from "../../scripts/app.js";
import { BYPASSED, isFromOutside, linkBy, linkOf, MUTED, nodesOf, rootGraph, widgetOf } from "./graph.js";

const EMPTY_LATENT = /^Empty.*Latent/; // class names of nodes

/** By node type: for each output, the input that a node passes on if it is turned off. */
const PASSED_ON = { RASPatchModel: ["model"], RASTrace: ["latent"] };

/**
 * By node type: the nodes of ComfyUI that take the place of a node that is turned off. `outputs` are the outputs that
 * they have in common. `nodes` has the nodes by what is added to the id; the last one has these outputs.
 */
const STAND_INS = {
  RASSampler: {
    outputs: [0],
    nodes: (read) => ({
      "": node("KSamplerSelect", { sampler_name: read("order") === "euler" ? "euler" : "dpmpp_2m" }),
    }),
  },
  RASScheduler: {
    outputs: [0],
    nodes: (read) => ({
      "": node("BasicScheduler", {
        model: read("model"), scheduler: "simple", steps: read("steps"), denoise: read("denoise"),
      }),
    }),
  },
  RASKSampler: { outputs: [0], nodes: (read) => ({ "": sampler(read) }) },
  RASCompare: {
    outputs: [0, 1, 5], // the images without RAS, with RAS, and in fewer steps
    nodes: (read, id) => ({
      "": sampler(read),
      ".decoded": node("VAEDecode", { samples: [id, 0], vae: read("vae") }),
    }),
  },
};

function sampler(read) {
  const names = [
    "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise",
  ];
  return node("KSampler", Object.fromEntries(names.map((name) => [name, read(name)])));
}

function node(type, inputs) {
  const given = Object.entries(inputs).filter(([, value]) => value != null);
  return { class_type: type, inputs: Object.fromEntries(given) };
}

app.registerExtension({
  name: "multirate_ras.turned_off",

  setup() {
    const { graphToPrompt } = app;
    app.graphToPrompt = async function (graph = rootGraph()) {
      const prompt = await graphToPrompt.apply(this, arguments);
      if (prompt?.output) reconnect({ graph, prefix: "" }, prompt.output);
      return prompt;
    };
  },
});

/**
 * Adds to a prompt the inputs that it lacks because they come from turned-off nodes of the pack.
 *
 * @param at a `graph`; `prefix`, which precedes the ids of its nodes in the prompt; of a subgraph also its `node`, and
 *     `outer`, the place of that node.
 */
function reconnect(at, output) {
  for (const node of nodesOf(at.graph)) {
    const entry = output[at.prefix + node.id];
    if (node.subgraph && !isOff(node)) reconnect(inside(at, node), output);
    if (!entry || isOff(node)) continue;
    for (const { name, link } of node.inputs ?? []) {
      if (link == null || (name in entry.inputs && !isBlank(at, link, output))) continue;
      const source = sourceOf(at, link, output);
      if (source) entry.inputs[name] = source;
    }
  }
}

/** The origin of a link in the form that prompts have, [id, slot]; null if there is none. */
function sourceOf(at, linkId, output) {
  const origin = originOf(at, linkId);
  if (!origin) return null;
  if (isOff(origin.node)) return ofTurnedOff(origin.at, origin.node, origin.slot, output);
  const id = `${origin.at.prefix}${origin.node.id}`;
  return output[id] ? [id, origin.slot] : null;
}

/** The node that a link comes from, where it is, and its slot: through Reroute, and out of and into subgraphs. */
function originOf(at, linkId) {
  const link = linkId == null ? null : linkBy(at.graph, linkId);
  if (!link) return null;
  if (isFromOutside(link)) return at.outer ? originOf(at.outer, at.node.inputs?.[link.origin_slot]?.link) : null;
  const node = at.graph.getNodeById(link.origin_id);
  if (!node) return null;
  if (node.subgraph && !isOff(node)) {
    return originOf(inside(at, node), node.subgraph.outputs[link.origin_slot]?.linkIds?.[0]);
  }
  if (node.isVirtualNode && !isOff(node)) return originOf(at, node.inputs?.[0]?.link);
  return { at, node, slot: link.origin_slot };
}

/** What takes the place of an output of a node that is turned off. */
function ofTurnedOff(at, node, slot, output) {
  const read = (name) => valueOf(at, node, name, output);
  const passed = PASSED_ON[node.type]?.[slot];
  if (passed) return read(passed);
  if (node.mode === BYPASSED && !STAND_INS[node.type]) {
    const { type } = node.outputs[slot];
    const link = [node.inputs?.[slot], ...(node.inputs ?? [])].find((one) => one?.type === type)?.link;
    return link == null ? null : sourceOf(at, link, output);
  }
  if (!STAND_INS[node.type]?.outputs.includes(slot)) return null;
  return standIn(at, node, read, output);
}

function standIn(at, node, read, output) {
  const id = `${at.prefix}${node.id}`;
  const nodes = Object.entries(STAND_INS[node.type].nodes(read, id));
  for (const [added, made] of nodes) output[id + added] ??= { ...made, _meta: { title: node.title } };
  return [id + nodes.at(-1)[0], 0];
}

/** Whether a link comes from a bypassed RAS KSampler that would pass an empty latent on. */
function isBlank(at, linkId, output) {
  const { at: where, node, slot } = originOf(at, linkId) ?? {};
  if (node?.type !== "RASKSampler" || node.mode !== BYPASSED || slot !== 0) return false;
  const latent = valueOf(where, node, "latent_image", output);
  return EMPTY_LATENT.test(output[latent?.[0]]?.class_type);
}

/** The value of a node's input: the origin of its link, or else the value of its widget. */
function valueOf(at, node, name, output) {
  const link = linkOf(node, name);
  const source = link == null ? null : sourceOf(at, link, output);
  return source ?? promoted(at, link) ?? widgetOf(node, name)?.value ?? null;
}

/** The value of a widget that a subgraph's node shows for a node inside. */
function promoted(at, linkId) {
  const link = linkId == null ? null : linkBy(at.graph, linkId);
  if (!link || !isFromOutside(link)) return null;
  const name = at.node?.inputs?.[link.origin_slot]?.name;
  return name == null ? null : widgetOf(at.node, name)?.value;
}

function inside(at, node) {
  return { graph: node.subgraph, prefix: `${at.prefix}${node.id}:`, node, outer: at };
}

function isOff(node) {
  return node.mode === MUTED || node.mode === BYPASSED;
}
