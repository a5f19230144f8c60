// The room that live views have in a node: how much height they add to it. A subgraph's node shows the views of all the
// samplers inside, so each of them can come and go while others stay; if there are several, they have titles.

import { namesOf } from "./names.js";

const rooms = new WeakMap(); // node -> its Room

/** The room of a node; a new one if the node shows no live view yet. */
export function roomOf(node) {
  if (!rooms.has(node)) rooms.set(node, new Room(node));
  return rooms.get(node);
}

class Room {
  constructor(node) {
    this.node = node;
    this.panels = new Set();
    this.heightBefore = 0; // without a panel
    this.grown = 0; // by setSize, since then
  }

  add(panel) {
    if (!this.panels.size) Object.assign(this, { heightBefore: this.node.size[1], grown: 0 });
    this.panels.add(panel);
    this.entitle();
  }

  /** Takes a panel out, whose widget is already removed, and gives its height back. */
  remove(panel) {
    const { node } = this;
    const { growth, height: all } = this;
    this.panels.delete(panel);
    this.entitle();
    const given = this.panels.size ? Math.min(growth, all - this.height) : growth;
    const height = node.size[1] - given;
    this.grown = Math.max(this.grown - given, 0);
    if (!this.below.length) this.restoreLayout();
    // In Nodes 2.0, this also ends the least height that an element has if it was made while the view was there.
    node.setSize([node.size[0], Math.max(height, node.computeSize()[1])]);
  }

  /** Tells which sampler each panel belongs to, if there are several. */
  entitle() {
    const panels = [...this.panels];
    const names = namesOf(panels);
    panels.forEach((panel, i) => panel.entitle(panels.length < 2 ? "" : names[i]));
  }

  /** The height of all panels. */
  get height() {
    return [...this.panels].reduce((sum, panel) => sum + panel.height(), 0);
  }

  /** The height that the panels have added to the node. Nodes 2.0 makes a node as high as what is in it. */
  get growth() {
    if (!this.panels.size) return 0;
    return isNodes2() ? Math.max(this.node.size[1] - this.heightBefore, 0) : this.grown;
  }

  /** Makes the node high enough; a node that is already higher keeps its height. */
  fit() {
    const { node } = this;
    const height = Math.max(node.size[1], node.computeSize()[1]);
    this.grown += height - node.size[1];
    node.setSize([node.size[0], height]);
  }

  // --- in the classic canvas ----------------------------------------------------------------------------

  /** The panels that the node does not lay out itself. */
  get below() {
    return [...this.panels].filter((panel) => panel.isBelow);
  }

  /** In the classic canvas, a subgraph node lays out the widgets of its inputs only: adds the panels below them. */
  extendLayout() {
    if (this.sizeWithout) return;
    const { node } = this;
    this.sizeWithout = node.computeSize;
    node.computeSize = (...args) => {
      const size = this.sizeWithout.apply(node, args); // may be node.size itself
      for (const panel of this.below) {
        const height = panel.height();
        Object.assign(panel.widget, { y: size[1], computedHeight: height });
        size[1] += height;
      }
      return size;
    };
  }

  restoreLayout() {
    if (this.sizeWithout) delete this.node.computeSize;
    this.sizeWithout = null;
  }
}

export function isNodes2() {
  return Boolean(globalThis.LiteGraph?.vueNodesMode);
}
