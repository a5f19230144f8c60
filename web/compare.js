// Shows RAS Compare's result in the node: the image without RAS and another one with a slider, and a line of figures.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { releaseFocus } from "./focus.js";
import { translated } from "./reasons.js";
import { dropOf } from "./views.js";
import { unlist } from "./unlisted.js";
import { say } from "./words.js";

const WIDGET = "multirate_ras_compare";
const MARGIN = 10; // ComfyUI's margin of a widget, on each side
const BELOW_IMAGE = 66; // buttons, a line of text, and the gaps between them
const MOST_HEIGHT = 640;
const WIDTHS = { RASCompare: 440, RASMaskPreview: 420 }; // of new nodes, so that their content is readable
const MASK_PREVIEW_HEIGHT = 420; // the image is as wide as the node, in Nodes 2.0 too

app.registerExtension({
  name: "multirate_ras.compare",

  setup: addStyle,

  nodeCreated(node) {
    const width = WIDTHS[node.comfyClass];
    if (!width) return;
    const height = node.comfyClass === "RASMaskPreview" ? MASK_PREVIEW_HEIGHT : node.size[1];
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    if (node.comfyClass === "RASCompare") followRuns(node);
  },

  afterConfigureGraph() {
    // The user has returned to this workflow: show its results again.
    for (const [id, output] of Object.entries(app.nodeOutputs ?? {})) {
      const node = output?.ras_compare && (app.rootGraph ?? app.graph).getNodeById(Number(id));
      if (node?.comfyClass === "RASCompare") node.onExecuted(output);
    }
  },
});

function followRuns(node) {
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    const answer = onExecuted?.apply(this, arguments);
    const [result] = output?.ras_compare ?? [];
    if (result) {
      dropOf(node);
      (node.rasSlider ??= new Slider(node)).show(result);
    }
    return answer;
  };
}

class Slider {
  constructor(node) {
    this.node = node;
    this.ratio = 1; // height / width of the images
    this.build();
    const [, heightBefore] = node.size;
    const widget = node.addDOMWidget(WIDGET, WIDGET, this.element, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true, // the side panel would resize the element, which is also in the node
      getMinHeight: () => this.height(),
    });
    widget.serialize = false; // not part of a saved workflow
    unlist(widget);
    this.grown = 0; // by how much the slider has made the node taller
    const { onSerialize } = node;
    node.onSerialize = (saved, ...more) => {
      const answer = onSerialize?.call(node, saved, ...more);
      // In Nodes 2.0 the height of a node follows from what it shows.
      saved.size = [saved.size[0], LiteGraph.vueNodesMode ? heightBefore : saved.size[1] - this.grown];
      return answer;
    };
    this.fit(); // before the canvas makes room for the widget by itself
  }

  build() {
    this.element = create("div", "multirate-ras-compare");
    this.images = create("div", "multirate-ras-images");
    this.before = create("img");
    this.after = create("img");
    this.line = create("div", "multirate-ras-line");
    this.range = create("input");
    Object.assign(this.range, { type: "range", min: "0", max: "1000", value: "500" });
    this.range.addEventListener("input", () => this.split());
    this.range.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.range.addEventListener("keydown", (event) => event.stopPropagation());
    this.left = create("span", "multirate-ras-left");
    this.right = create("span", "multirate-ras-right");
    this.images.append(this.before, this.after, this.line, this.left, this.right, this.range);
    this.buttons = create("div", "multirate-ras-buttons");
    this.buttons.setAttribute("role", "group");
    this.text = create("div", "multirate-ras-figures");
    this.element.append(this.images, this.buttons, this.text);
    this.before.addEventListener("load", () => this.fit());
    releaseFocus(this.element);
  }

  show(result) {
    this.result = result;
    this.before.src = addressOf(result.images.dense);
    this.range.setAttribute("aria-label", say("compare"));
    this.buttons.setAttribute("aria-label", say("compare"));
    this.left.textContent = this.label("dense");
    this.before.alt = say("without");
    const names = ["ras", ...(result.steps.fewer < result.steps.dense ? ["fewer"] : [])];
    this.buttons.replaceChildren(...names.map((name) => this.button(name)));
    this.text.textContent = figures(result);
    this.text.title = say("ssim");
    this.left.title = this.right.title = this.buttons.title = say("sampling");
    this.choose("ras");
    this.split();
  }

  button(name) {
    const button = create("button");
    button.type = "button";
    button.dataset.name = name;
    button.textContent = this.label(name);
    button.addEventListener("pointerdown", (event) => event.stopPropagation());
    button.addEventListener("click", () => this.choose(name));
    return button;
  }

  /** What a run is, and how many seconds it took. */
  label(name) {
    const seconds = this.result.seconds?.[name]; // results of earlier versions have none
    const text = this.nameOf(name);
    return seconds == null ? text : say("timed", { name: text, seconds: seconds.toFixed(1) });
  }

  nameOf(name) {
    if (name === "dense") return say("without");
    return name === "ras" ? say("with") : say("fewer", { steps: this.result.steps.fewer });
  }

  choose(name) {
    this.after.src = addressOf(this.result.images[name]);
    this.right.textContent = this.label(name);
    this.after.alt = this.nameOf(name);
    for (const button of this.buttons.children) {
      button.setAttribute("aria-pressed", String(button.dataset.name === name));
    }
  }

  /** Shows the second image right of the slider's line. */
  split() {
    const share = Number(this.range.value) / 10;
    this.after.style.clipPath = `inset(0 0 0 ${share}%)`;
    this.line.style.left = `${share}%`;
  }

  height() {
    const image = (this.node.size[0] - 2 * MARGIN) * this.ratio;
    return Math.round(Math.min(image, MOST_HEIGHT)) + BELOW_IMAGE + 2 * MARGIN;
  }

  fit() {
    const { node, before } = this;
    if (before.naturalWidth) this.ratio = before.naturalHeight / before.naturalWidth;
    this.element.style.minHeight = `${this.height() - 2 * MARGIN}px`;
    const height = Math.max(node.size[1], node.computeSize()[1]);
    this.grown += height - node.size[1];
    node.setSize([node.size[0], height]);
    node.graph?.setDirtyCanvas(true, true);
  }
}

/** One line: how much faster the run was and how close its image is, or why it was not faster. */
function figures(result) {
  if (!result.accelerated) return say("nothing", { reason: translated(result.reason) || say("noRegional") });
  const text = gains(result);
  return result.inpainting ? say("inpainted", { text }) : text;
}

function gains({ speedup, expected, closeness }) {
  const close = { ras: closeness.ras.toFixed(2), fewer: closeness.fewer.toFixed(2) };
  if (speedup) return say(speedup < 0.95 ? "slower" : "faster", { speed: speedup.toFixed(1), ...close });
  return say("about", { speed: expected.toFixed(1), ...close });
}

function addressOf({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

function create(tag, className = "") {
  return Object.assign(document.createElement(tag), { className });
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./compare.css", import.meta.url).href;
  document.head.append(link);
}
