// The samplers that run with a node's settings, and what the graph tells of their runs.

import { isOff, isSetByUser, linkBy, linkOf, nodesBefore, nodesOf, originOf, valueOf } from "./graph.js";

export const HAVE_SETTINGS = new Set(["RASPatchModel", "RASKSampler", "RASCompare"]);
const EMPTY_LATENT = /^Empty.*Latent/; // class names of nodes
const MASKING = new Set(["SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning"]);

/** The samplers of a node's run, in their order: itself, or those that get its model; [null] if there is none. */
export function samplersOf(node) {
  if (valueOf(node, "steps") != null) return [node];
  const found = [...new Set(samplersBehind(node))];
  const real = found.filter((one) => !one.outputs?.some(({ type }) => type === "SIGMAS")); // rather than schedulers
  const on = (real.length ? real : found).filter((one) => !isOff(one));
  if (!on.length) return [found[0] ?? null];
  const before = new Map(on.map((one) => [one, nodesBefore(one)]));
  const rank = (one) => on.filter((other) => before.get(one).has(other)).length;
  return on.sort((a, b) => rank(a) - rank(b));
}

/** Whether a node replaces the settings of a RAS node before it. */
export function replaces(node) {
  return Boolean(node) && HAVE_SETTINGS.has(node.comfyClass) && !isOff(node);
}

/** The samplers that get a node's model, directly or through other nodes that change it, or through a guider. */
function samplersBehind(node, left = 8) {
  const outputs = (node.outputs ?? []).filter(({ type }) => type === "MODEL" || type === "GUIDER");
  return outputs.flatMap(({ links }) => links ?? []).flatMap((id) => {
    const link = linkBy(node.graph, id);
    const next = link && node.graph.getNodeById(link.target_id);
    if (!next) return [];
    if (valueOf(next, "steps") != null || linkOf(next, "sigmas") != null || replaces(next)) return [next];
    return left ? samplersBehind(next, left - 1) : [];
  });
}

/** The node that sets a sampler's steps. */
export function scheduleOf(sampler) {
  return valueOf(sampler, "steps") == null ? originWith(sampler, "sigmas", "steps") : sampler;
}

/** The node that chooses a sampler's sampler_name. */
export function solverOf(sampler) {
  return valueOf(sampler, "sampler_name") == null ? originWith(sampler, "sampler", "sampler_name") : sampler;
}

/** A sampler's number of steps; 0 or NaN if it is unknown. */
export function stepsOf(sampler) {
  return Number(valueOf(scheduleOf(sampler), "steps"));
}

/** The nearest node before an input of a node, along inputs of the same name, that has the widget. */
function originWith(node, input, widget, left = 8) {
  const link = node && linkOf(node, input);
  const origin = link != null && originOf(node, link);
  if (!origin || valueOf(origin, widget) != null) return origin || null;
  return left ? originWith(origin, input, widget, left - 1) : null;
}

/** The size of the image: that of the node's empty latent, or of the only empty latent of the graph. */
export function sizeOf(node) {
  const isEmpty = (one) => EMPTY_LATENT.test(one?.comfyClass);
  const link = linkOf(node, "latent_image");
  const all = nodesOf(node.graph).filter(isEmpty);
  const latent = link != null ? originOf(node, link) : all.length === 1 ? all[0] : null;
  if (!isEmpty(latent) || !["width", "height"].every((name) => isSetByUser(latent, name))) return {};
  return { width: valueOf(latent, "width"), height: valueOf(latent, "height") };
}

/** Whether the latent that a sampler gets has a mask, so that a part of it is given. */
export function isInpainting(node, left = 20) {
  const link = node?.inputs?.find((one) => one.type === "LATENT" && one.link != null)?.link;
  const origin = link == null || !left ? null : originOf(node, link);
  if (!origin) return false;
  const isMasking = MASKING.has(origin.comfyClass) && valueOf(origin, "noise_mask") !== false;
  return (isMasking && !isOff(origin)) || isInpainting(origin, left - 1); // other nodes pass a mask on
}
