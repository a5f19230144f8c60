// Tracks which nodes show a live view: the sampler node, and each subgraph node that contains it.

import { app } from "../../scripts/app.js";
import { LivePanel } from "./live_panel.js";

export const views = new Map(); // node id on the server -> View
const watchedNodes = new WeakSet(); // nodes whose removal drops their views

/** The view of a node id, created if necessary: a panel in the node and in each subgraph node that contains it. */
export function viewOf(id) {
  const path = findNodes(id);
  if (!path.length || !path.every((node) => node.addDOMWidget)) return null;
  if (views.get(id)?.node !== path.at(-1)) {
    drop(id);
    views.set(id, new View(path));
    path.forEach(dropWithNode);
  }
  return views.get(id);
}

/** The nodes of an id such as "3", or "12:5" for node 5 in the subgraph that is node 12; outermost first. */
function findNodes(id) {
  let graph = app.rootGraph ?? app.graph;
  const path = [];
  for (const part of id.split(":")) {
    const node = graph?.getNodeById(Number(part));
    if (!node) return [];
    path.push(node);
    graph = node.subgraph;
  }
  return path;
}

function dropWithNode(node) {
  if (watchedNodes.has(node)) return;
  watchedNodes.add(node);
  const { onRemoved } = node;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    for (const [id, view] of views) {
      if (view.shows(node)) drop(id);
    }
  };
}

export function drop(id) {
  views.get(id)?.remove();
  views.delete(id);
}

export function dropAll() {
  [...views.keys()].forEach(drop);
}

/** Drops the views of runs that have not finished, as after an interrupt or an error. */
export function dropRunning() {
  for (const [id, view] of views) {
    if (view.isRunning) drop(id);
  }
}

/** The panels of one run. */
class View {
  constructor(nodes) {
    this.panels = nodes.map((node) => new LivePanel(node));
  }

  /** The sampler node. */
  get node() {
    return this.panels.at(-1).node;
  }

  get isRunning() {
    return this.panels[0].isRunning;
  }

  get promptId() {
    return this.panels[0].run.promptId;
  }

  get hasPlace() {
    return this.panels.some((panel) => panel.hasPlace);
  }

  shows(node) {
    return this.panels.some((panel) => panel.node === node);
  }

  each(action) {
    this.panels.forEach(action);
  }

  remove() {
    this.each((panel) => panel.remove());
  }
}
