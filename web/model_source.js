// Identifies the model of a node from the graph, as nodes/model_source.py does from a prompt: the server then finds the
// plans that RAS Calibrate saved for it, or those of its family.

import { BYPASSED, isSetByUser, leadsNowhere, originOf, placeBefore, valueOf } from "./graph.js";

const PASSES_ON = new Set(["RASPatchModel"]); // as in nodes/model_source.py
const LONGEST_SOURCE = 4000; // characters
const FILE = /\.(safetensors|sft)$/i;
const OPTIONAL = 7; // shape of an input that may stay without a link

/** The family or the file of a node's model, from the first node of the chain of nodes that pass it on. */
export function modelOf(node) {
  const first = loaderOf(modelChain(node));
  if (first?.comfyClass === "RASDemoModel") return { family: valueOf(first, "family") };
  const values = first?.widgets?.map(({ name }) => valueOf(first, name)) ?? [];
  const file = values.find((value) => typeof value === "string" && FILE.test(value));
  return file ? { file } : {};
}

/** The chain of nodes that a node's model comes from, as nodes/model_source.py finds it in a prompt. */
export function sourceOf(node) {
  const chain = modelChain(node).filter((one) => one.mode !== BYPASSED && !PASSES_ON.has(one.comfyClass));
  if (!loaderOf(modelChain(node)) || [node, ...chain].some((one) => modelLinks(one).length > 1)) return {};
  const source = JSON.stringify(chain.map((one) => [one.comfyClass, settingsOf(one)]));
  return source.length <= LONGEST_SOURCE ? { source } : {};
}

/** The last node of a chain, if no other node comes before it. */
function loaderOf(chain) {
  const last = chain.at(-1);
  return last && !modelLinks(last).length ? last : null;
}

/** The nodes that a node's model comes from, the nearest first. */
function modelChain(node, left = 20) {
  const [link] = node ? modelLinks(node) : [];
  const origin = link == null || !left ? null : originOf(node, link);
  return origin ? [origin, ...modelChain(origin, left - 1)] : [];
}

/** Whether a model is connected to the node at a place: directly, or to the first of the nodes that pass it on. */
export function hasModel(at, left = 20) {
  const needed = at.node.inputs?.filter((one) => one.type === "MODEL" && (one.link != null || one.shape !== OPTIONAL)) ?? [];
  return needed.every(({ link }) => {
    if (link == null || leadsNowhere(at, link)) return false;
    const origin = left ? placeBefore(at, link) : null;
    return !origin || hasModel(origin, left - 1);
  });
}

export function modelLinks(node) {
  const links = (node.inputs ?? []).filter((one) => one.type === "MODEL").map((one) => one.link);
  return links.filter((link) => link != null);
}

/** The values of a node's widgets that are part of a prompt. */
function settingsOf(node) {
  const kept = (node.widgets ?? []).filter(
    ({ name, serialize, options }) => serialize !== false && options?.serialize !== false && isSetByUser(node, name),
  );
  return Object.fromEntries(kept.map(({ name }) => [name, valueOf(node, name)]));
}
