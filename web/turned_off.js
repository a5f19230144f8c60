// Keeps a graph runnable if nodes of the pack are turned off (bypassed or muted), for a comparison without RAS.
//
// A bypassed node passes its inputs on, but a muted one does not, so that the sampler behind a muted RAS Patch Model
// would lack its model. Here, a muted RAS Patch Model or RAS Trace passes its input on as well. RAS Multirate Sampler
// and RAS Scheduler have no input to pass on: turned off, they are replaced by ComfyUI's nodes of the same kind.

import { app } from "../../scripts/app.js";

/** By node type: for each output, the input that a node passes on if it is turned off. */
const PASSED_ON = { RASPatchModel: ["model"], RASTrace: ["latent"] };

/** By node type: ComfyUI's node that takes the place of a node that is turned off, and its inputs. */
const STAND_INS = {
  RASSampler: {
    type: "KSamplerSelect",
    inputs: (read) => ({ sampler_name: read("order") === "euler" ? "euler" : "dpmpp_2m" }),
  },
  RASScheduler: {
    type: "BasicScheduler",
    inputs: (read) => ({
      model: read("model"), scheduler: "simple", steps: read("steps"), denoise: read("denoise"),
    }),
  },
};

app.registerExtension({
  name: "multirate_ras.turned_off",

  setup() {
    const { graphToPrompt } = app;
    app.graphToPrompt = async function (graph = app.rootGraph ?? app.graph) {
      const prompt = await graphToPrompt.apply(this, arguments);
      if (prompt?.output) reconnect(graph, "", prompt.output);
      return prompt;
    };
  },
});

/**
 * Adds to a prompt the inputs that it lacks because they come from turned-off nodes of the pack. `prefix` precedes the
 * ids of the graph's nodes in the prompt.
 */
function reconnect(graph, prefix, output) {
  for (const node of [...(graph.nodes ?? graph._nodes)]) {
    const entry = output[prefix + node.id];
    if (node.subgraph && !isOff(node)) reconnect(node.subgraph, `${prefix}${node.id}:`, output);
    if (!entry || isOff(node)) continue;
    for (const { name, link } of node.inputs ?? []) {
      if (link == null || name in entry.inputs) continue;
      const source = sourceOf(graph, prefix, link, output);
      if (source) entry.inputs[name] = source;
    }
  }
}

/** The origin of a link in the form that prompts have, [id, slot]; null if there is none. */
function sourceOf(graph, prefix, linkId, output) {
  const link = graph.getLink?.(linkId) ?? graph.links[linkId];
  const node = link && graph.getNodeById(link.origin_id);
  if (!node) return null;
  const id = `${prefix}${node.id}`;
  if (!isOff(node)) return output[id] ? [id, link.origin_slot] : null;
  const read = (name) => valueOf(graph, prefix, node, name, output);
  const passed = PASSED_ON[node.type]?.[link.origin_slot];
  if (passed) return read(passed);
  const stand = STAND_INS[node.type];
  if (!stand) return null;
  output[id] ??= { class_type: stand.type, inputs: stand.inputs(read), _meta: { title: node.title } };
  return [id, 0];
}

/** The value of a node's input: the origin of its link, or else the value of its widget. */
function valueOf(graph, prefix, node, name, output) {
  const link = node.inputs?.find((one) => one.name === name)?.link;
  if (link != null) return sourceOf(graph, prefix, link, output);
  return node.widgets?.find((one) => one.name === name)?.value ?? null;
}

function isOff(node) {
  return node.mode === 2 || node.mode === 4; // muted, bypassed
}
