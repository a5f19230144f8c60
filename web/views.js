// Tracks which nodes show a live view: the sampler node, and each subgraph node that contains it.

import { app } from "../../scripts/app.js";
import { placeOf, placesBefore, rootGraph } from "./graph.js";
import { LivePanel } from "./live_panel.js";

export const views = new Map(); // node id on the server -> View
const PATCH = "RASPatchModel";
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
  let graph = rootGraph();
  const path = [];
  for (const part of id.split(":")) {
    const node = graph?.getNodeById(Number(part));
    if (!node) return [];
    path.push(node);
    graph = node.subgraph;
  }
  return path;
}

/** The node of an id, which may be in a subgraph; undefined if there is none. */
export function lastNode(id) {
  return findNodes(String(id)).at(-1);
}

/** Drops the view of a node that now shows something else. */
export function dropOf(node) {
  for (const [id, view] of views) {
    if (view.node !== node) continue;
    forget(id);
    drop(id);
  }
}

/** Drops the views of samplers that RAS Patch Model patched when the view was opened, but no longer does. */
export function dropUnpatched() {
  for (const [id, view] of views) {
    if (view.isRunning || !view.wasPatched || isPatched(view.node)) continue;
    forget(id);
    drop(id);
  }
}

/** Whether RAS Patch Model, which may be turned off, is before a node along links, also through subgraphs. */
function isPatched(node) {
  return [...placesBefore(placeOf(node)).values()].some((one) => one.node.comfyClass === PATCH);
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

// --- runs of workflows that are not open now --------------------------------------------------------------

const MOST_KEPT = 8; // runs
const kept = new Map(); // workflow and node id -> what a panel needs to show the finished run again

/** Keeps the data of a finished run, to show it again if the user returns to the workflow. */
export function keep(id) {
  const key = keyOf(id);
  kept.delete(key);
  kept.set(key, views.get(id).panels.at(-1).finished);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
}

export function forget(id) {
  kept.delete(keyOf(id));
}

/** Shows the finished runs of the workflow that is open now. */
export function restoreKept() {
  for (const [key, run] of kept) {
    const id = key.slice(key.lastIndexOf(" ") + 1);
    if (key === keyOf(id) && !views.has(id)) viewOf(id)?.each((panel) => panel.restore(run));
  }
}

function keyOf(id) {
  return `${openWorkflow()} ${rootGraph().id} ${id}`;
}

/** The front end's key of the workflow that is open. */
export function openWorkflow() {
  return app.extensionManager?.workflow?.activeWorkflow?.key;
}

/** Shows the views in the graph that the user has opened; whether they are all there, as Nodes 2.0 takes a moment. */
export function reappear() {
  const panels = [...views.values()].flatMap((view) => view.panels);
  panels.forEach((panel) => panel.reappear());
  return panels.every((panel) => !panel.isOpen || panel.hasPlace);
}

/** The workflow that is open, as an object that stays the same if the workflow gets another name. */
export function openWorkflowItself() {
  return app.extensionManager?.workflow?.activeWorkflow;
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
    this.panels = nodes.map((node, i) => new LivePanel(node, nodes.slice(i + 1)));
    this.wasPatched = isPatched(this.node); // not if the link is invisible, as through nodes that set and get values
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
