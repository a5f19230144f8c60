// Greys out the inputs that have no effect with the chosen speed: those that count only while `speed` is custom. A
// subgraph's node that shows such an input, or the speed, follows the same rule.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const CUSTOM = "custom";
const OF_CUSTOM = ["sample_ratio", "start_percent", "end_percent", "error_reset_every", "kv_cache"]; // as in nodes/settings.py
const SUBGRAPH_INPUT = -10; // id of the origin of links from a subgraph's inputs
const WATCH = 1000; // milliseconds from one look at the graph to the next

app.registerExtension({
  name: "multirate_ras.unused_inputs",

  setup() {
    api.addEventListener("graphChanged", updateAll);
    app.canvas.canvas.addEventListener("litegraph:set-graph", updateAll); // into a subgraph, or out of it
    // Not each change of a widget or a link is followed by that event.
    setInterval(() => document.hidden || updateAll(), WATCH);
  },

  nodeCreated(node) {
    const speed = hasSettings(node) && widgetOf(node, "speed");
    if (!speed) return;
    const { callback } = speed;
    speed.callback = function () {
      const answer = callback?.apply(this, arguments);
      updateAll();
      return answer;
    };
    markInputs([{ node, path: [] }]); // before it is in a graph
  },

  afterConfigureGraph: updateAll,
});

function hasSettings(node) {
  return node.comfyClass?.startsWith("RAS") && OF_CUSTOM.every((name) => widgetOf(node, name));
}

/** Looks at all nodes, also those in subgraphs: several nodes may show the same subgraph. */
function updateAll() {
  const graph = app.rootGraph ?? app.graph;
  const shown = new Map(); // node -> where it is, for each node of a subgraph that shows it
  for (const each of graph ? within(graph, []) : []) {
    shown.set(each.node, [...(shown.get(each.node) ?? []), each]);
  }
  for (const places of shown.values()) markInputs(places);
}

/** The pack's nodes in a graph, each with the nodes of the subgraphs that it is in, outermost first. */
function within(graph, path) {
  return [...(graph.nodes ?? graph._nodes ?? [])].flatMap((node) => {
    if (node.subgraph) return within(node.subgraph, [...path, node]);
    return hasSettings(node) ? [{ node, path }] : [];
  });
}

/** Greys out inputs of one node, and those of the nodes of subgraphs that show them, or makes them usable again. */
function markInputs(places) {
  const unused = places.map(({ node, path }) => {
    const value = chainOf(node, "speed", path).value;
    return value !== undefined && value !== CUSTOM;
  });
  for (const name of OF_CUSTOM) {
    mark(widgetOf(places[0].node, name), unused.every(Boolean));
    places.forEach(({ node, path }, i) => chainOf(node, name, path).outer.forEach((widget) => mark(widget, unused[i])));
  }
}

function mark(widget, isUnused) {
  if (!widget || Boolean(widget.disabled) === isUnused) return;
  widget.disabled = isUnused;
  app.canvas?.setDirty(true, true);
}

/**
 * Where a node's input gets its value from: the `value`, undefined if another node gives it, and the widgets of the
 * nodes of subgraphs that show the input, `outer`.
 */
function chainOf(node, name, path) {
  const id = node.inputs?.find((one) => one.name === name)?.link;
  if (id == null) return { value: widgetOf(node, name)?.value, outer: [] };
  const link = node.graph?.getLink?.(id) ?? node.graph?.links?.[id];
  const host = path.at(-1);
  const shown = Number(link?.origin_id) === SUBGRAPH_INPUT ? host?.inputs?.[link.origin_slot]?.name : undefined;
  const widget = shown === undefined ? undefined : widgetOf(host, shown);
  if (!widget) return { value: undefined, outer: [] };
  const { value, outer } = chainOf(host, shown, path.slice(0, -1));
  return { value, outer: [widget, ...outer] };
}

function widgetOf(node, name) {
  return node?.widgets?.find((one) => one.name === name);
}
