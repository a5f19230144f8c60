// Shows a line in RAS Patch Model and RAS KSampler that estimates, from the plan of the chosen speed, how long a run
// will take and how close its image will be.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { say } from "./words.js";

const ROUTE = "/multirate_ras/hint";
const NODES = new Set(["RASPatchModel", "RASKSampler"]);
const WIDGET = "multirate_ras_hint";
const HEIGHT = 34; // two lines
const MARGIN = 4;
const WAIT = 250; // milliseconds from a change of the graph to the request
const FILE = /\.(safetensors|sft)$/i;
const USUAL_STEPS = 28;
const CLOSENESS = [[34, "same"], [30, "near"], [26, "close"], [-Infinity, "similar"]]; // from this many dB on: key in words.js

const hints = new Set();
let timer = 0;

app.registerExtension({
  name: "multirate_ras.hint",

  setup() {
    api.addEventListener("graphChanged", askSoon);
    addStyle();
  },

  nodeCreated(node) {
    if (NODES.has(node.comfyClass)) hints.add(new Hint(node));
    askSoon();
  },

  afterConfigureGraph: askSoon,
});

function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => hints.forEach((hint) => hint.update()), WAIT);
}

class Hint {
  constructor(node) {
    this.node = node;
    this.element = document.createElement("div");
    this.element.className = "multirate-ras-hint";
    this.element.setAttribute("role", "note");
    const widget = node.addDOMWidget(WIDGET, WIDGET, this.element, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      margin: MARGIN,
      getMinHeight: () => HEIGHT + 2 * MARGIN,
      getMaxHeight: () => HEIGHT + 2 * MARGIN,
    });
    widget.serialize = false; // not part of a saved workflow
    const speed = node.widgets.find((one) => one.name === "speed");
    const { callback } = speed;
    speed.callback = function () {
      askSoon();
      return callback?.apply(this, arguments);
    };
    const { onRemoved } = node;
    node.onRemoved = (...args) => {
      hints.delete(this);
      return onRemoved?.apply(node, args);
    };
    const { onAdded } = node;
    node.onAdded = (...args) => {
      hints.add(this); // a node that is moved into a subgraph is removed and added again
      return onAdded?.apply(node, args);
    };
  }

  async update() {
    const { node } = this;
    if (!node.graph) return;
    const speed = valueOf(node, "speed");
    if (speed === "custom") return this.show("", say("custom"));
    const sampler = node.comfyClass === "RASKSampler" ? node : samplerBehind(node);
    const schedule = valueOf(sampler, "steps") == null ? originWith(sampler, "sigmas", "steps") : sampler;
    const choice = valueOf(sampler, "sampler_name") == null ? originWith(sampler, "sampler", "sampler_name") : sampler;
    const steps = Number(valueOf(schedule, "steps")) || USUAL_STEPS;
    const query = new URLSearchParams({
      speed,
      steps,
      denoise: valueOf(schedule, "denoise") ?? "",
      sampler: valueOf(choice, "sampler_name") ?? "",
      plan: linkOf(node, "plan") != null,
      ...modelOf(node),
    });
    if (String(query) === this.asked) return;
    this.asked = String(query);
    const answer = await api.fetchApi(`${ROUTE}?${query}`).catch(() => null);
    if (answer?.ok && this.asked === String(query)) this.tell(await answer.json(), speed, steps);
  }

  tell({ time, steps, closeness }, speed, total) {
    if (time >= 1) return this.show(this.asked, say("few"));
    if (linkOf(this.node, "plan") != null) return this.show(this.asked, say("plan"));
    const parts = [say("time", { share: Math.round(time * 100) })];
    if (steps) parts.push(say("steps", { steps, total }));
    if (closeness) parts.push(say(CLOSENESS.find(([from]) => closeness >= from)[1]));
    const dB = closeness ? say("closeness", { dB: Math.round(closeness) }) : "";
    this.show(String(this.asked), parts.join(" · "), say("source", { speed, closeness: dB }));
  }

  show(asked, text, tooltip = "") {
    this.asked = asked;
    this.element.textContent = text;
    this.element.title = tooltip;
  }
}

// --- the graph ------------------------------------------------------------------------------------------

function valueOf(node, name) {
  return node?.widgets?.find((one) => one.name === name)?.value;
}

function linkOf(node, name) {
  return node.inputs?.find((one) => one.name === name)?.link;
}

function originOf(node, linkId) {
  const link = node.graph.getLink?.(linkId) ?? node.graph.links[linkId];
  return link && node.graph.getNodeById(link.origin_id);
}

/** The family or the file of a node's model, from the first node of the chain of nodes that pass it on. */
function modelOf(node, left = 20) {
  const link = node?.inputs?.find((one) => one.type === "MODEL")?.link;
  if (link != null) return left ? modelOf(originOf(node, link), left - 1) : {};
  if (node?.comfyClass === "RASDemoModel") return { family: valueOf(node, "family") };
  const file = node?.widgets?.find(({ value }) => typeof value === "string" && FILE.test(value))?.value;
  return file ? { file } : {};
}

/** The sampler that gets a node's model, directly or through other nodes that change it, or through a guider. */
function samplerBehind(node, left = 8) {
  for (const output of node.outputs ?? []) {
    if (output.type !== "MODEL" && output.type !== "GUIDER") continue;
    for (const id of output.links ?? []) {
      const link = node.graph.getLink?.(id) ?? node.graph.links[id];
      const next = link && node.graph.getNodeById(link.target_id);
      if (valueOf(next, "steps") != null || (next && linkOf(next, "sigmas") != null)) return next;
      const found = next && left ? samplerBehind(next, left - 1) : null;
      if (found) return found;
    }
  }
  return null;
}

/** The nearest node before an input of a node, along inputs of the same name, that has the widget. */
function originWith(node, input, widget, left = 8) {
  const link = node && linkOf(node, input);
  const origin = link != null && originOf(node, link);
  if (!origin || valueOf(origin, widget) != null) return origin || null;
  return left ? originWith(origin, input, widget, left - 1) : null;
}

function addStyle() {
  const style = document.createElement("style");
  style.textContent =
    ".multirate-ras-hint { overflow: hidden; padding: 0 4px; color: var(--descrip-text, #999);" +
    " font: 12px/17px Inter, Arial, sans-serif; }";
  document.head.append(style);
}
