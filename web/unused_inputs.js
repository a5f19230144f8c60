// Greys out the inputs that have no effect with the chosen speed: those that count only while `speed` is custom. A
// subgraph's node that shows such an input, or the speed, follows the same rule.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chainOf, isSetByUser, nodesOf, rootGraph, valueOf, widgetOf } from "./graph.js";

const CUSTOM = "custom";
const OF_CUSTOM = ["sample_ratio", "start_percent", "end_percent", "error_reset_every", "kv_cache"]; // as in nodes/settings.py
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
  const graph = rootGraph();
  const shown = new Map(); // node -> where it is, for each node of a subgraph that shows it
  for (const each of graph ? within(graph, []) : []) {
    shown.set(each.node, [...(shown.get(each.node) ?? []), each]);
  }
  for (const places of shown.values()) markInputs(places);
}

/** The pack's nodes in a graph, each with the nodes of the subgraphs that it is in, outermost first. */
function within(graph, path) {
  return nodesOf(graph).flatMap((node) => {
    if (node.subgraph) return within(node.subgraph, [...path, node]);
    return hasSettings(node) ? [{ node, path }] : [];
  });
}

/** Greys out inputs of one node, and those of the nodes of subgraphs that show them, or makes them usable again. */
function markInputs(places) {
  const unused = places.map(({ node, path }) => {
    const value = isSetByUser(node, "speed", path) ? valueOf(node, "speed", path) : undefined;
    return value !== undefined && value !== CUSTOM;
  });
  for (const name of OF_CUSTOM) {
    mark(widgetOf(places[0].node, name), unused.every(Boolean));
    places.forEach(({ node, path }, i) => {
      for (const shown of chainOf(node, name, path).slice(1)) mark(widgetOf(shown.node, shown.name), unused[i]);
    });
  }
}

function mark(widget, isUnused) {
  if (!widget || Boolean(widget.disabled) === isUnused) return;
  widget.disabled = isUnused;
  app.canvas?.setDirty(true, true);
}
