// The samplers that run with a node's settings, and what the graph tells of their runs.

import {
  idOf, inputOf, isOff, isSetByUser, linkOf, nodesOf, placeBefore, placeOf, placesAfter, placesBefore, valueOf, widgetOf,
} from "./graph.js";

export const HAVE_SETTINGS = new Set(["RASPatchModel", "RASKSampler", "RASCompare"]);
const EMPTY_LATENT = /^Empty.*Latent/; // class names of nodes
const MASKING = new Set(["SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning"]);

/** The samplers of a node's run, as places, in their order: itself, or those that get its model. */
export function samplersOf(node) {
  if (widgetOf(node, "steps")) return [placeOf(node)];
  const found = [...samplersBehind(placeOf(node)).values()];
  const real = found.filter((one) => !one.node.outputs?.some(({ type }) => type === "SIGMAS")); // rather than schedulers
  const on = (real.length ? real : found).filter((one) => !isOff(one.node, one.path));
  if (!on.length) return found.slice(0, 1);
  const before = new Map(on.map((one) => [one, placesBefore(one)]));
  const rank = (one) => on.filter((other) => before.get(one).has(idOf(other))).length;
  return on.sort((a, b) => rank(a) - rank(b));
}

/** Whether the node at a place replaces the settings of a RAS node before it. */
export function replaces({ node, path }) {
  return HAVE_SETTINGS.has(node.comfyClass) && !isOff(node, path);
}

/** The samplers that get a node's model, directly or through other nodes that change it, or through a guider, by id. */
function samplersBehind(at, found = new Map(), seen = new Set()) {
  const outputs = (at.node.outputs ?? []).filter(({ type }) => type === "MODEL" || type === "GUIDER");
  for (const next of outputs.flatMap((output) => placesAfter(at, output))) {
    const id = idOf(next);
    if (seen.has(id)) continue;
    seen.add(id);
    const isSampler = widgetOf(next.node, "steps") || linkOf(next.node, "sigmas") != null;
    if (isSampler || replaces(next)) found.set(id, next);
    else samplersBehind(next, found, seen);
  }
  return found;
}

/** The place of the node that sets a sampler's steps. */
export function scheduleOf(sampler) {
  return placeWith(sampler, "sigmas", "steps");
}

/** The place of the node that chooses a sampler's sampler_name. */
export function solverOf(sampler) {
  return placeWith(sampler, "sampler", "sampler_name");
}

/** A sampler's number of steps; 0 or NaN if it is unknown. */
export function stepsOf(sampler) {
  return Number(inputOf(scheduleOf(sampler), "steps"));
}

/** The nearest place that has the widget: the given one, or one before it, along inputs of the same name. */
function placeWith(at, input, widget, left = 8) {
  if (!at || widgetOf(at.node, widget)) return at;
  return left ? placeWith(placeBefore(at, linkOf(at.node, input)), input, widget, left - 1) : null;
}

/** The size of the image: that of the empty latent of the node at a place, or of the only empty latent of its graph. */
export function sizeOf(at) {
  const isEmpty = (one) => EMPTY_LATENT.test(one?.node.comfyClass);
  const link = linkOf(at.node, "latent_image");
  const all = nodesOf(at.node.graph).map((node) => ({ node, path: at.path })).filter(isEmpty);
  const latent = link != null ? placeBefore(at, link) : all.length === 1 ? all[0] : null;
  const { node, path } = latent ?? {};
  if (!isEmpty(latent) || !["width", "height"].every((name) => isSetByUser(node, name, path))) return {};
  return { width: valueOf(node, "width", path), height: valueOf(node, "height", path) };
}

/** Whether the latent that a sampler gets has a mask, so that a part of it is given. */
export function isInpainting(at, left = 20) {
  const link = at?.node.inputs?.find((one) => one.type === "LATENT" && one.link != null)?.link;
  const origin = link == null || !left ? null : placeBefore(at, link);
  if (!origin) return false;
  const { node, path } = origin;
  const isMasking = MASKING.has(node.comfyClass) && valueOf(node, "noise_mask", path) !== false;
  return (isMasking && !isOff(node, path)) || isInpainting(origin, left - 1); // other nodes pass a mask on
}
