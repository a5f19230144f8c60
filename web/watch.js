// Looks at the graph again whenever it may have changed.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

export const SET_GRAPH = "litegraph:set-graph"; // into a subgraph, or out of it
const WATCH = 1000; // milliseconds from one look at the graph to the next

export function watch(look) {
  api.addEventListener("graphChanged", look);
  app.canvas.canvas.addEventListener(SET_GRAPH, look);
  // Not each change of a widget or a link is followed by that event.
  setInterval(() => document.hidden || look(), WATCH);
}
