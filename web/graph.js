// Looks along the links of a graph, also through subgraphs: where a node's inputs and the values of its widgets come from.

import { app } from "../../scripts/app.js";

export const MUTED = 2;
export const BYPASSED = 4;
const SUBGRAPH_INPUT = -10; // id of the origin of links from a subgraph's inputs

export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

export function nodesOf(graph) {
  return [...(graph.nodes ?? graph._nodes ?? [])];
}

export function widgetOf(node, name) {
  return node?.widgets?.find((one) => one.name === name);
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

/** The node that a link comes from: through Reroute, and out of and into subgraphs. */
export function originOf({ graph }, linkId) {
  const link = linkId == null ? null : linkBy(graph, linkId);
  if (!link) return null;
  if (isFromOutside(link)) {
    const outer = nodeOfSubgraph(graph);
    return outer && originOf(outer, outer.inputs[link.origin_slot]?.link);
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) return originOf({ graph: node.subgraph }, node.subgraph.outputs[link.origin_slot]?.linkIds?.[0]);
  return node?.isVirtualNode ? originOf(node, node.inputs?.[0]?.link) : node;
}

/** All nodes that a node depends on along links, itself included. */
export function nodesBefore(node, found = new Set()) {
  if (found.has(node)) return found;
  found.add(node);
  for (const { link } of node.inputs ?? []) {
    const origin = originOf(node, link);
    if (origin) nodesBefore(origin, found);
  }
  return found;
}

/** The first node whose subgraph is this; null if there is none. */
function nodeOfSubgraph(subgraph, graph = rootGraph()) {
  for (const node of nodesOf(graph)) {
    const found = node.subgraph === subgraph ? node : node.subgraph && nodeOfSubgraph(subgraph, node.subgraph);
    if (found) return found;
  }
  return null;
}

/** Whether a node is muted or bypassed, or a subgraph's node that it is in. */
export function isOff(node) {
  const outer = node.graph === rootGraph() ? null : nodeOfSubgraph(node.graph);
  return node.mode === MUTED || node.mode === BYPASSED || Boolean(outer && isOff(outer));
}

// --- values ---------------------------------------------------------------------------------------------

/**
 * The widgets that a value comes from, each as its `node` and `name`: that of the node itself, then those that show it
 * in the nodes of subgraphs, from the inside out.
 *
 * @param path the nodes of the subgraphs that the node is in, outermost first. Several nodes may have the same subgraph;
 *     if the path is left out, the first of them counts.
 */
export function chainOf(node, name, path) {
  const outer = promoted(node, name, path);
  return [{ node, name }, ...(outer ? chainOf(outer.node, outer.name, path?.slice(0, -1)) : [])];
}

/** The subgraph's node, and the name of its widget, that a node inside takes a widget's value from; null if none. */
function promoted(node, name, path) {
  const id = linkOf(node, name);
  const link = id == null ? null : linkBy(node.graph, id);
  if (!isFromOutside(link)) return null;
  const outer = path ? path.at(-1) : nodeOfSubgraph(node.graph);
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
