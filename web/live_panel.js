// What a sampler node shows of a run: the latest preview with its regions, a line of text, and the timeline.

import { app } from "../../scripts/app.js";
import { drawStep, unpackMask, COLOURS } from "./mask_overlay.js";
import { isNodes2, roomOf } from "./panel_room.js";
import { translated } from "./reasons.js";
import { describeStep, Timeline } from "./timeline.js";
import { unlist } from "./unlisted.js";
import { percent, say } from "./words.js";

const WIDGET = "multirate_ras_live";
const MAX_IMAGE_HEIGHT = 340;
const BELOW_IMAGE = 54; // the timeline, and the gaps between it, the image and the texts
const TEXT_HEIGHT = 32; // of two lines, the least
const HEADING_HEIGHT = 20; // with the gap to the image
const MOST_PREVIEWS = 128; // of about 20 KB each
const HOST_PREVIEW = "$$canvas-image-preview"; // ComfyUI's name for the widget that shows node.imgs
const WIDGET_MARGIN = 10; // ComfyUI's margin of a widget, on each side

export class LivePanel {
  /**
   * @param node the node that shows the panel: a sampler, or a subgraph's node that contains it
   * @param inside the nodes from there to the sampler, in a subgraph's node
   */
  constructor(node, inside = []) {
    this.node = node;
    this.inside = inside;
    this.build();
    this.start({ latent: [1, 1], grid: [1, 1], patch: [1, 1], steps: 0 });
    this.mount();
  }

  // --- a run --------------------------------------------------------------------------------------

  /** Starts a new run, and forgets the last one. */
  start(message) {
    const { grid, latent, patch, steps, prompt_id, part, no_preview } = message;
    this.run = { grid, latent, patch, promptId: prompt_id, part, hasNoPreview: no_preview };
    this.total = steps;
    this.steps = new Map();
    this.previews = new Map(); // step index -> Blob
    this.chosen = 0;
    this.isRunning = true;
    this.room?.entitle(); // the user may have renamed the sampler
    const plan = translated(message.plan);
    this.legend = plan ? "" : say("legend"); // for the first regional step
    this.say(this.numbered(plan));
  }

  /** Shows a step that is being computed. */
  showStep(message) {
    const isSame = message.prompt_id === this.run.promptId && message.part?.[0] === this.run.part?.[0];
    if (!this.isRunning || !isSame || this.steps.size === 0) {
      this.start(message);
      this.fit();
    }
    for (const [step, kind, share] of message.unsent) this.remember({ step, kind, share });
    this.remember(message);
    if (this.legend && [...this.steps.values()].some(({ kind }) => kind === "regional")) {
      this.say(this.numbered(this.legend));
      this.legend = "";
    }
    this.choose(message.step);
  }

  /** Adds ComfyUI's latent preview of a finished step. */
  addPreview(step, blob) {
    this.previews.set(step, blob);
    if (this.previews.size > MOST_PREVIEWS) this.previews.delete(this.previews.keys().next().value);
    this.draw();
  }

  /** The data that another panel needs to show a finished run again. */
  get finished() {
    const { run, total, steps, previews, chosen, text } = this;
    return { run, total, steps, previews, chosen, text };
  }

  /** Shows a finished run from the data of another panel. */
  restore({ text, chosen, ...run }) {
    Object.assign(this, run, { isRunning: false });
    this.say(...text);
    this.fit();
    this.choose(chosen);
  }

  /** Shows the timeline of a finished run, in which the user can choose a step. */
  showTimeline(message) {
    this.isRunning = false;
    this.total = message.steps;
    message.timeline.forEach((step) => this.remember(step));
    const isRival = message.part && message.part[2] !== "with"; // a run without RAS, for comparison
    const [summary, warning] = isRival ? ["", ""] : describeRun(message);
    this.say(this.numbered(summary), warning);
    this.choose(message.timeline.at(-1)?.step ?? 0);
  }

  /** A line of text that begins with the number of the run and what it is, if its node does several runs. */
  numbered(text) {
    const [run, runs, name] = this.run.part ?? [];
    const which = name && say("run", { run, runs, name: say(name, { steps: this.total }) });
    return [which, text].filter(Boolean).join(" · ");
  }

  /** Shows a text below the timeline, and a warning after it. */
  say(text, warning = "") {
    this.text = [text, warning];
    const reason = document.createElement("span");
    reason.className = "multirate-ras-reason";
    reason.textContent = warning;
    this.headline.replaceChildren(text, text && warning ? " · " : "", reason);
    const whole = this.headline.textContent;
    this.headline.title = whole && `${whole}\n${say("terms")}`;
  }

  remember({ step, kind, share, mask }) {
    const [rows, columns] = this.run.grid;
    this.steps.set(step, { kind, share, mask: unpackMask(mask, rows * columns) });
  }

  choose(index) {
    this.chosen = index;
    this.place();
    const step = this.steps.get(index);
    if (!step) return;
    const text = describeStep(index, this.total, step);
    const note = this.run.hasNoPreview && !this.previews.size ? ` · ${say("noPreview")}` : "";
    this.caption.textContent = describeStep(index, this.total, step, "caption") + note; // nodes may be narrow
    this.caption.title = `${text}${note}\n${say("terms")}`;
    this.caption.style.setProperty("--kind", COLOURS[step.kind]);
    this.canvas.setAttribute("aria-label", say("label", { text }));
    this.timeline.show(this.steps, this.total, index, !this.isRunning);
    this.draw();
  }

  async draw() {
    const step = this.steps.get(this.chosen);
    if (!step) return;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const image = await decode(this.previewFor(this.chosen));
    if (turn === this.turn) drawStep(this.canvas, this.run, step, image);
    image?.close();
  }

  /** The preview of a step, or of the latest step before it: a running step has no preview yet. */
  previewFor(index) {
    for (let i = index; i >= 0; i--) {
      if (this.previews.has(i)) return this.previews.get(i);
    }
    return null;
  }

  // --- the panel in the node ------------------------------------------------------------------------

  build() {
    this.element = document.createElement("div");
    this.element.className = "multirate-ras-live";
    this.heading = document.createElement("div");
    this.heading.className = "multirate-ras-title";
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.caption = document.createElement("div");
    this.caption.className = "multirate-ras-caption";
    this.headline = document.createElement("div");
    this.headline.className = "multirate-ras-headline";
    this.timeline = new Timeline((index) => this.choose(index));
    this.element.append(this.heading, this.canvas, this.caption, this.timeline.element, this.headline);
    this.textHeight = TEXT_HEIGHT;
    this.resized = new ResizeObserver(() => this.makeRoom());
    [this.caption, this.headline].forEach((text) => this.resized.observe(text));
  }

  mount() {
    const { node } = this;
    this.takeOver();
    // ComfyUI registers the widget whenever the node is added to a graph, by a function that it appends to `onAdded`.
    // Here, the panel is removed with its node, and so this function is kept apart.
    const { onAdded } = node;
    node.onAdded = undefined;
    this.widget = node.addDOMWidget(WIDGET, WIDGET, this.element, {
      serialize: false, // not part of a prompt
      hideOnZoom: false,
      hideInPanel: true, // the side panel would resize the element, which is also in the node
      getMinHeight: () => this.height(),
    });
    this.register = node.onAdded;
    node.onAdded = onAdded;
    this.widget.serialize = false; // not part of a saved workflow
    unlist(this.widget);
    keepOutOfFile(node);
    this.isBelow = !isNodes2() && !node.widgets.includes(this.widget);
    this.room = roomOf(node);
    this.room.add(this);
    if (this.isBelow) this.room.extendLayout();
    this.fit();
  }

  /** Removes a preview that a run without RAS has left in the node, but no output images. */
  takeOver() {
    const { node } = this;
    const widget = node.widgets?.find((one) => one.name === HOST_PREVIEW);
    if (!widget || node.images) return;
    node.imgs = undefined;
    node.removeWidget(widget);
  }

  height() {
    const [height, width] = this.run.latent;
    const image = Math.round(Math.min((this.node.size[0] - 2 * WIDGET_MARGIN) * (height / width), MAX_IMAGE_HEIGHT));
    const heading = this.heading.textContent ? HEADING_HEIGHT : 0;
    return heading + image + BELOW_IMAGE + this.textHeight + 2 * WIDGET_MARGIN;
  }

  /** The sampler's title. */
  get title() {
    const { title, type } = this.inside.at(-1) ?? this.node;
    return title || type;
  }

  /** The sampler's id in the node, such as "5", or "12:5" in another subgraph. */
  get id() {
    return this.inside.map(({ id }) => id).join(":");
  }

  /** Shows a title above the image, or none if it is empty. */
  entitle(text) {
    if (this.heading.textContent === text) return;
    this.heading.textContent = this.heading.title = text;
    this.fit();
  }

  /** Makes the panel taller if its texts take more lines; it stays so, lest the node changes with each run. */
  makeRoom() {
    const height = this.caption.offsetHeight + this.headline.offsetHeight;
    if (height <= this.textHeight) return;
    this.textHeight = height;
    this.fit();
  }

  /** Makes the node large enough for the image; a node that is already larger keeps its size. */
  fit() {
    const [rows, columns] = this.run.latent;
    this.element.style.setProperty("--ratio", rows / columns);
    this.element.style.minHeight = `${this.height() - 2 * WIDGET_MARGIN}px`;
    this.room.fit();
    this.node.graph?.setDirtyCanvas(true, true);
  }

  /**
   * Shows the panel in a graph that the user has opened again. By then, ComfyUI has turned off the widgets that the
   * graph's nodes do not list, among them the panels below them, and Nodes 2.0 has created the nodes' elements anew.
   */
  reappear() {
    if (!this.isOpen) return;
    if (this.isBelow) this.register?.();
    this.place();
  }

  /** Whether the user is in the graph that the node is in. */
  get isOpen() {
    return this.node.graph === app.canvas.graph;
  }

  /** Nodes 2.0 does not always show a widget that is added late; then the panel is added to its element directly. */
  place() {
    if (this.element.isConnected || !isNodes2() || !this.isOpen) return;
    document.querySelector(`[data-testid="node-body-${this.node.id}"]`)?.append(this.element);
  }

  /** Whether the node can show the panel. In the classic canvas it can, even if the node is not visible. */
  get hasPlace() {
    return this.element.isConnected || !isNodes2();
  }

  /** Removes the panel and restores the node's size. */
  remove() {
    const { node } = this;
    this.turn = NaN; // discards a drawing in progress
    this.resized.disconnect();
    this.timeline.remove();
    this.element.remove();
    if (node.widgets?.includes(this.widget)) node.removeWidget(this.widget);
    else this.widget.onRemove?.();
    this.room.remove(this);
    node.graph?.setDirtyCanvas(true, true);
  }
}

const cleanNodes = new WeakSet();

/**
 * Keeps the panel out of saved workflows: a node is saved with the height that it has without the panel. A subgraph
 * node saves the names of all its widgets, even of those that are not serialised; ours is removed.
 */
function keepOutOfFile(node) {
  if (cleanNodes.has(node)) return;
  cleanNodes.add(node);
  const { onSerialize } = node;
  node.onSerialize = function (saved) {
    const answer = onSerialize?.apply(this, arguments);
    const names = saved.properties?.proxyWidgets;
    if (Array.isArray(names)) saved.properties.proxyWidgets = names.filter(([, name]) => name !== WIDGET);
    saved.size = [saved.size[0], saved.size[1] - roomOf(node).growth];
    return answer;
  };
}

/** What a finished run has computed, and a warning: why it was not accelerated as planned. */
function describeRun({ plan, share, speedup, busy, accelerated, reason }) {
  if (!accelerated) return ["", say("nothing", { reason: translated(reason) || say("noRegional") })];
  const parts = [plan ? translated(plan) : say("tokens", { share: percent(share) })];
  if (speedup) parts.push(busy ? say("busy") : say("speed", { speed: speedup.toFixed(2) }));
  return [parts.join(" · "), reason ? say("less", { reason: translated(reason) }) : ""];
}

/** The preview as a bitmap; null if there is none or it cannot be decoded, so that the regions are still drawn. */
async function decode(blob) {
  return blob ? createImageBitmap(blob).catch(() => null) : null;
}
