// Looks along the links of a graph, also through subgraphs: where a node's inputs and the values of its widgets come from.

import { app } from "../../scripts/app.js";

export const MUTED = 2;
export const BYPASSED = 4;
const SUBGRAPH_INPUT = -10; // id of the origin of links from a subgraph's inputs
const VALUE = "value"; // the widget of nodes that give a value
const SUBGRAPH_OUTPUT = -20; // id of the target of links to a subgraph's outputs

export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

export function nodesOf(graph) {
  return [...(graph.nodes ?? graph._nodes ?? [])];
}

export function widgetOf(node, name) {
  return node?.widgets?.find((one) => one.name === name);
}

// --- places ---------------------------------------------------------------------------------------------

/**
 * Where a node is: the `node`, and as `path` the nodes of the subgraphs that it is in, outermost first. Several nodes may
 * have the same subgraph; the first of them counts.
 */
export function placeOf(node) {
  return { node, path: pathTo(node.graph) ?? [] };
}

/** The id that the server has for the node at a place. */
export function idOf({ node, path }) {
  return [...path, node].map(({ id }) => id).join(":");
}

/** The nodes of the subgraphs that contain a graph, outermost first; null if it is not in the workflow. */
function pathTo(graph, from = rootGraph()) {
  if (graph === from) return [];
  for (const node of from ? nodesOf(from) : []) {
    const path = node.subgraph && pathTo(graph, node.subgraph);
    if (path) return [node, ...path];
  }
  return null;
}

/** The nodes of the workflow and its subgraphs that are wanted, each with its places: as many as show its subgraph. */
export function placesOfAll(isWanted) {
  const found = new Map();
  for (const at of rootGraph() ? within(rootGraph(), []) : []) {
    if (isWanted(at.node)) found.set(at.node, [...(found.get(at.node) ?? []), at]);
  }
  return found;
}

function within(graph, path) {
  return nodesOf(graph).flatMap((node) =>
    node.subgraph ? within(node.subgraph, [...path, node]) : [{ node, path }],
  );
}

function inside({ node, path }) {
  return { graph: node.subgraph, path: [...path, node] };
}

/** Whether a node is muted or bypassed, or a subgraph's node that it is in. */
export function isOff(node, path = placeOf(node).path) {
  return [...path, node].some(({ mode }) => mode === MUTED || mode === BYPASSED);
}

// --- links ----------------------------------------------------------------------------------------------

/** The id of the link of a node's input. */
export function linkOf(node, name) {
  return node.inputs?.find((one) => one.name === name)?.link;
}

export function linkBy(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.[id];
}

/** Whether a link comes from an input of the subgraph that it is in. */
export function isFromOutside(link) {
  return Number(link?.origin_id) === SUBGRAPH_INPUT;
}

/**
 * Whether a link to the node at a place leads to nothing, through Reroute and subgraphs: to an input that has no link, or to
 * an output of a subgraph that has none inside.
 */
export function leadsNowhere({ node, path }, linkId) {
  return leadsNowhereIn({ graph: node.graph, path }, linkId);
}

function leadsNowhereIn({ graph, path }, linkId) {
  if (linkId == null) return true;
  const link = linkBy(graph, linkId);
  const isOutside = isFromOutside(link);
  const node = isOutside ? path.at(-1) : link && graph.getNodeById(link.origin_id);
  if (!node) return false;
  if (node.subgraph && !isOutside) {
    return leadsNowhereIn(inside({ node, path }), node.subgraph.outputs[link.origin_slot]?.linkIds?.[0]);
  }
  if (!isOutside && !node.isVirtualNode) return false;
  const input = node.inputs?.[isOutside ? link.origin_slot : 0];
  if (!input) return false; // such as a node that gets a value from one that sets it
  return leadsNowhere({ node, path: isOutside ? path.slice(0, -1) : path }, input.link);
}

/** The node that a link to a node comes from: through Reroute, and out of and into subgraphs. */
export function originOf(node, linkId) {
  return placeBefore(placeOf(node), linkId)?.node ?? null;
}

/** The same, as places. */
export function placeBefore({ node, path }, linkId) {
  return originIn({ graph: node.graph, path }, linkId);
}

function originIn({ graph, path }, linkId) {
  const link = linkId == null ? null : linkBy(graph, linkId);
  if (!link) return null;
  if (isFromOutside(link)) {
    const outer = path.at(-1);
    return outer ? placeBefore({ node: outer, path: path.slice(0, -1) }, outer.inputs[link.origin_slot]?.link) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) return originIn(inside({ node, path }), node.subgraph.outputs[link.origin_slot]?.linkIds?.[0]);
  if (node?.isVirtualNode) return placeBefore({ node, path }, node.inputs?.[0]?.link);
  return node ? { node, path } : null;
}

/**
 * The places that the links of a node's output lead to: through Reroute, and into and out of subgraphs. Each has the `name`
 * of the input there.
 */
export function placesAfter({ node, path }, output) {
  return (output?.links ?? []).flatMap((id) => targetsIn({ graph: node.graph, path }, id));
}

function targetsIn({ graph, path }, linkId) {
  const link = linkBy(graph, linkId);
  if (!link) return [];
  if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
    const outer = path.at(-1);
    return outer ? placesAfter({ node: outer, path: path.slice(0, -1) }, outer.outputs[link.target_slot]) : [];
  }
  const node = graph.getNodeById(link.target_id);
  if (node?.subgraph) return placesBehind({ node, path }, link.target_slot);
  if (node?.isVirtualNode) return placesAfter({ node, path }, node.outputs?.[0]);
  return node ? [{ node, path, name: node.inputs?.[link.target_slot]?.name }] : [];
}

/** The same of an input of a subgraph's node, given by its slot: where it leads to inside. */
export function placesBehind({ node, path }, slot) {
  const at = inside({ node, path });
  return (node.subgraph.inputs[slot]?.linkIds ?? []).flatMap((id) => targetsIn(at, id));
}

/** All places that a node depends on along links, its own included: their ids, and the places. */
export function placesBefore(at, found = new Map()) {
  if (found.has(idOf(at))) return found;
  found.set(idOf(at), at);
  for (const { link } of at.node.inputs ?? []) {
    const origin = placeBefore(at, link);
    if (origin) placesBefore(origin, found);
  }
  return found;
}

// --- values ---------------------------------------------------------------------------------------------

/**
 * The widgets that a value comes from, each as its `node` and `name`: that of the node itself, then those that show it
 * in the nodes of subgraphs, from the inside out.
 *
 * @param path as in `placeOf`
 */
export function chainOf(node, name, path = placeOf(node).path) {
  const outer = promoted(node, name, path);
  return [{ node, name }, ...(outer ? chainOf(outer.node, outer.name, path.slice(0, -1)) : [])];
}

/** The subgraph's node, and the name of its widget, that a node inside takes a widget's value from; null if none. */
function promoted(node, name, path) {
  const id = linkOf(node, name);
  const link = id == null ? null : linkBy(node.graph, id);
  if (!isFromOutside(link)) return null;
  const outer = path.at(-1);
  const shown = outer?.inputs?.[link.origin_slot]?.name;
  return shown !== undefined && widgetOf(outer, shown) ? { node: outer, name: shown } : null;
}

/** The value of a node's widget, or of the widget of a subgraph's node that gives it its value. */
export function valueOf(node, name, path) {
  if (!node) return undefined;
  const last = chainOf(node, name, path).at(-1);
  return widgetOf(last.node, last.name)?.value;
}

/** Whether a widget's value is set in the node, or in a subgraph's node, rather than by a link from another node. */
export function isSetByUser(node, name, path) {
  const last = chainOf(node, name, path).at(-1);
  return linkOf(last.node, last.name) == null;
}

/** The value that a node's input has in a run, from its own widget or one that it is linked to; undefined if unknown. */
export function inputOf(at, name) {
  if (!at) return undefined;
  const chain = chainOf(at.node, name, at.path);
  const last = { node: chain.at(-1).node, path: at.path.slice(0, at.path.length - chain.length + 1) };
  const link = linkOf(last.node, chain.at(-1).name);
  if (link == null) return widgetOf(last.node, chain.at(-1).name)?.value;
  const origin = primitiveOf(last, link) ?? placeBefore(last, link);
  return origin && widgetOf(origin.node, VALUE) ? inputOf(origin, VALUE) : undefined;
}

/** The place of the front end's own node for a value, which counts as virtual, but has nothing before it. */
function primitiveOf({ node, path }, linkId) {
  const origin = node.graph.getNodeById(linkBy(node.graph, linkId)?.origin_id);
  return origin?.isVirtualNode && widgetOf(origin, VALUE) ? { node: origin, path } : null;
}
