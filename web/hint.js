// Shows a line in RAS Patch Model, RAS KSampler and RAS Compare that estimates, from the plan of the chosen speed, how
// long a run with RAS will take and how close its image will be. If RAS Calibrate has saved plans for the graph's model
// and image size, the server takes the plan from these. If RAS Calibrate is connected to the node, its plan is shown once
// it is saved.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { keepShown, showAt } from "./hint_badge.js";
import { unlist } from "./unlisted.js";
import { say } from "./words.js";

const ROUTE = "/multirate_ras/hint";
const COMPARE = "RASCompare";
const NODES = new Set(["RASPatchModel", "RASKSampler", COMPARE]);
const WIDGET = "multirate_ras_hint";
const HEIGHT = 34; // two lines
const MARGIN = 4;
const WATCH = 1000; // milliseconds from one look at the graph to the next
const WAIT = 250; // milliseconds from a change of the graph to the request
const SUBGRAPH_INPUT = -10; // id of the origin of links from a subgraph's inputs
const MUTED = 2;
const BYPASSED = 4;
const PASSES_ON = new Set(["RASPatchModel"]); // as in nodes/model_source.py
const EMPTY_LATENT = /^Empty.*Latent/; // class names of nodes
const MASKING = new Set(["SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning"]);
const LONGEST_SOURCE = 4000; // characters
const FILE = /\.(safetensors|sft)$/i;
const USUAL_STEPS = 28;
const CLOSENESS = [[34, "same"], [30, "near"], [26, "close"], [-Infinity, "similar"]]; // from this many dB on: key in words.js

const hints = new Set();
let timer = 0;

app.registerExtension({
  name: "multirate_ras.hint",

  setup() {
    api.addEventListener("graphChanged", askSoon);
    app.canvas.canvas.addEventListener("litegraph:set-graph", askSoon); // into a subgraph, or out of it
    // Not each change of a widget or a link is followed by that event.
    setInterval(() => document.hidden || (keepShown(), hints.forEach((hint) => hint.update())), WATCH);
    api.addEventListener("execution_success", () => {
      hints.forEach((hint) => (hint.asked = "")); // RAS Calibrate may have saved plans
      askSoon();
    });
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
    unlist(widget);
    const speed = node.widgets.find((one) => one.name === "speed");
    const { callback } = speed;
    speed.callback = function () {
      askSoon();
      return callback?.apply(this, arguments);
    };
    const { onRemoved } = node;
    node.onRemoved = (...args) => {
      hints.delete(this);
      for (const host of this.hosts ?? []) showAt(host, "");
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
    this.showOutside();
    if (isOff(node) || !modelLinks(node).length) return this.show("", "");
    const speed = valueOf(node, "speed");
    const samplers = samplersOf(node);
    const steps = samplers.map(stepsOf);
    if (speed === "custom") {
      const hasGain = steps.some((known) => hasRegionalStep(node, known));
      return this.show("", say(hasGain ? "custom" : "customAllDense"));
    }
    const plan = linkOf(node, "plan");
    const calibration = plan == null ? null : originOf(node, plan);
    if (plan != null && calibration?.comfyClass !== "RASCalibrate") return this.show("", say("plan"));
    const queries = samplers.map((sampler) => this.queryOf(sampler, calibration));
    const asked = `${queries.join(" ")}${calibration ? " (connected)" : ""}`;
    if (asked === this.asked) return;
    this.asked = asked;
    const answers = await Promise.all(queries.map(estimateOf));
    if (this.asked !== asked) return;
    if (answers.includes(null)) return this.show(asked, ""); // what it says is about other settings; the next change asks again
    const isUnmeasured = answers.some(({ measured, time }) => measured == null && time < 1);
    if (calibration && isUnmeasured) return this.show(asked, say("plan"));
    const told = answers.map((answer, i) => this.tell(answer, speed, steps[i]));
    this.show(asked, ...together(told, samplers));
  }

  /** What the server is asked about the run of a sampler, which may be unknown. */
  queryOf(sampler, calibration) {
    const { node } = this;
    const choice = valueOf(sampler, "sampler_name") == null ? originWith(sampler, "sampler", "sampler_name") : sampler;
    return new URLSearchParams({
      speed: valueOf(node, "speed"),
      steps: stepsOf(sampler) || USUAL_STEPS,
      denoise: valueOf(scheduleOf(sampler), "denoise") ?? "",
      sampler: valueOf(choice, "sampler_name") ?? "",
      ...(isInpainting(sampler) ? { inpainting: 1 } : {}),
      ...modelOf(node),
      ...sourceOf(calibration ?? node),
      ...sizeOf(calibration ?? sampler ?? node),
    });
  }

  /** Shows the estimate at the nodes of the subgraphs that show the speed, and no longer at those that did. */
  showOutside() {
    const hosts = this.node.graph ? hostsOf(this.node) : [];
    for (const host of this.hosts ?? []) if (!hosts.includes(host)) showAt(host, "");
    const tooltip = this.short ? `${this.element.textContent}\n${this.element.title}` : "";
    for (const host of hosts) showAt(host, this.short ?? "", tooltip);
    this.hosts = hosts;
  }

  /** Of an answer: the text, its tooltip, the text for a badge, and the least that can be said. */
  tell({ time, steps, closeness, measured, unknown }, speed, total) {
    if (time >= 1) return steps == null ? ["", "", "", ""] : [say("few"), "", say("noGain"), say("none")];
    const share = say("time", { share: Math.round(time * 100) });
    // RAS Compare makes three runs; the estimate is of one of them.
    const parts = [this.node.comfyClass === COMPARE ? say("estimated", { run: say("with"), text: share }) : share];
    if (unknown) steps = total = null; // how many steps depends on the model, whose file is missing
    if (steps) parts.push(say("steps", { steps, total: total || USUAL_STEPS }));
    else if (total) parts.push(say("keepsSteps", { total }));
    const short = parts.slice(0, steps ? 2 : 1).join(" · "); // a badge is not much wider than a node
    if (closeness) parts.push(say(CLOSENESS.find(([from]) => closeness >= from)[1]));
    if (measured != null) {
      parts.push(say("measured"));
      return [parts.join(" · "), say("measuredSource", { speed, dB: measured.toFixed(1) }), short, share];
    }
    const dB = closeness ? say("closeness", { dB: Math.round(closeness) }) : "";
    return [parts.join(" · "), say("source", { speed, closeness: dB }), short, share];
  }

  show(asked, text, tooltip = "", short = "") {
    this.asked = asked;
    this.short = short;
    if (this.element.textContent !== text) this.element.textContent = text;
    this.element.title = tooltip;
    this.showOutside();
  }
}

/** The server's answer; null if there is none. */
async function estimateOf(query) {
  const answer = await api.fetchApi(`${ROUTE}?${query}`).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

/** Of what is told of several samplers: the text, its tooltip, and the text for a badge. */
function together(told, samplers) {
  const [all, sources, , least] = [0, 1, 2, 3].map((i) => told.map((texts) => texts[i]));
  const isSame = (texts) => texts.every((text) => text === texts[0]);
  if (isSame(all)) return told[0].slice(0, 3);
  const numbered = (texts, form) => texts.map((text, i) => text && form(i + 1, text, samplers[i])).filter(Boolean);
  const details = numbered(all, (i, text, { title }) => say("sampler", { name: `${i} (${title})`, text }));
  const tooltip = [...details, ...new Set(sources.filter(Boolean))].join("\n");
  if (isSame(least)) return [least[0], tooltip, least[0]];
  const lines = numbered(least, (i, text) => say("sampler", { name: i, text })); // a node has room for two
  return [lines.join("\n"), tooltip, numbered(least, (i, text) => `${i}. ${text}`).join("\n")];
}

/** Whether a run with speed = custom may have a step that computes only a part of the image; `steps` may be unknown. */
function hasRegionalStep(node, steps) {
  const set = (name) => (isSetByUser(node, name) ? Number(valueOf(node, name) ?? NaN) : NaN);
  const [ratio, start, end] = ["sample_ratio", "start_percent", "end_percent"].map(set);
  if (ratio >= 1 || start >= 1) return false;
  if (!steps) return true;
  const least = linkOf(node, "paper") == null ? 2 : 1; // steps before the first that can be regional
  const first = Math.max(least, Number.isNaN(start) ? 0 : Math.ceil(start * steps - 1e-9)); // as ras_core.config.Window
  const last = Number.isNaN(end) ? steps : Math.floor(end * steps + 1e-9);
  return first < last;
}

// --- the graph ------------------------------------------------------------------------------------------

/** Whether a node is muted or bypassed, or a subgraph's node that it is in. */
function isOff(node) {
  const root = app.rootGraph ?? app.graph;
  const outer = node.graph === root ? null : nodeOfSubgraph(root, node.graph);
  return node.mode === MUTED || node.mode === BYPASSED || Boolean(outer && isOff(outer));
}

/** The value of a node's widget, or of the widget of a subgraph's node that gives it its value. */
function valueOf(node, name) {
  if (!node) return undefined;
  const outer = promoted(node, name);
  return outer ? valueOf(outer.node, outer.name) : node.widgets?.find((one) => one.name === name)?.value;
}

/** The subgraph's node, and the name of its widget, that a node inside takes a widget's value from; null if none. */
function promoted(node, name) {
  const id = linkOf(node, name);
  const link = id == null ? null : linkBy(node.graph, id);
  if (Number(link?.origin_id) !== SUBGRAPH_INPUT) return null;
  const outer = nodeOfSubgraph(app.rootGraph ?? app.graph, node.graph);
  const shown = outer?.inputs[link.origin_slot]?.name;
  return outer?.widgets?.some((one) => one.name === shown) ? { node: outer, name: shown } : null;
}

/** The nodes of the subgraphs that a node is in, from the inside out, as long as they show its speed. */
function hostsOf(node, name = "speed") {
  const outer = promoted(node, name);
  return outer ? [outer.node, ...hostsOf(outer.node, outer.name)] : [];
}

/** Whether a widget's value is set in the node, or in a subgraph's node, rather than by a link from another node. */
function isSetByUser(node, name) {
  if (linkOf(node, name) == null) return true;
  const outer = promoted(node, name);
  return Boolean(outer) && isSetByUser(outer.node, outer.name);
}

function linkOf(node, name) {
  return node.inputs?.find((one) => one.name === name)?.link;
}

/** The node that a link comes from: through Reroute, and out of and into subgraphs. */
export function originOf({ graph }, linkId) {
  const link = linkId == null ? null : linkBy(graph, linkId);
  if (!link) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const outer = nodeOfSubgraph(app.rootGraph ?? app.graph, graph);
    return outer && originOf(outer, outer.inputs[link.origin_slot]?.link);
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) return originOf({ graph: node.subgraph }, node.subgraph.outputs[link.origin_slot]?.linkIds?.[0]);
  return node?.isVirtualNode ? originOf(node, node.inputs?.[0]?.link) : node;
}

function linkBy(graph, id) {
  return graph.getLink?.(id) ?? graph.links[id];
}

function nodeOfSubgraph(graph, subgraph) {
  for (const node of graph.nodes ?? graph._nodes) {
    const found = node.subgraph === subgraph ? node : node.subgraph && nodeOfSubgraph(node.subgraph, subgraph);
    if (found) return found;
  }
  return null;
}

/** The family or the file of a node's model, from the first node of the chain of nodes that pass it on. */
function modelOf(node) {
  const first = loaderOf(chainOf(node));
  if (first?.comfyClass === "RASDemoModel") return { family: valueOf(first, "family") };
  const values = first?.widgets?.map(({ name }) => valueOf(first, name)) ?? [];
  const file = values.find((value) => typeof value === "string" && FILE.test(value));
  return file ? { file } : {};
}

/** The chain of nodes that a node's model comes from, as nodes/model_source.py finds it in a prompt. */
function sourceOf(node) {
  const chain = chainOf(node).filter((one) => one.mode !== BYPASSED && !PASSES_ON.has(one.comfyClass));
  if (!loaderOf(chainOf(node)) || [node, ...chain].some((one) => modelLinks(one).length > 1)) return {};
  const source = JSON.stringify(chain.map((one) => [one.comfyClass, settingsOf(one)]));
  return source.length <= LONGEST_SOURCE ? { source } : {};
}

/** The last node of a chain, if no other node comes before it. */
function loaderOf(chain) {
  const last = chain.at(-1);
  return last && !modelLinks(last).length ? last : null;
}

/** The nodes that a node's model comes from, the nearest first. */
function chainOf(node, left = 20) {
  const [link] = node ? modelLinks(node) : [];
  const origin = link == null || !left ? null : originOf(node, link);
  return origin ? [origin, ...chainOf(origin, left - 1)] : [];
}

function modelLinks(node) {
  const links = (node.inputs ?? []).filter((one) => one.type === "MODEL").map((one) => one.link);
  return links.filter((link) => link != null);
}

/** The values of a node's widgets that are part of a prompt. */
function settingsOf(node) {
  const kept = (node.widgets ?? []).filter(
    ({ name, serialize, options }) => serialize !== false && options?.serialize !== false && isSetByUser(node, name),
  );
  return Object.fromEntries(kept.map(({ name }) => [name, valueOf(node, name)]));
}

/** The size of the image: that of the node's empty latent, or of the only empty latent of the graph. */
function sizeOf(node) {
  const isEmpty = (one) => EMPTY_LATENT.test(one?.comfyClass);
  const link = linkOf(node, "latent_image");
  const all = (node.graph.nodes ?? node.graph._nodes).filter(isEmpty);
  const latent = link != null ? originOf(node, link) : all.length === 1 ? all[0] : null;
  if (!isEmpty(latent) || !["width", "height"].every((name) => isSetByUser(latent, name))) return {};
  return { width: valueOf(latent, "width"), height: valueOf(latent, "height") };
}

/** Whether the latent that a sampler gets has a mask, so that a part of it is given. */
function isInpainting(node, left = 20) {
  const link = node?.inputs?.find((one) => one.type === "LATENT" && one.link != null)?.link;
  const origin = link == null || !left ? null : originOf(node, link);
  if (!origin) return false;
  const isMasking = MASKING.has(origin.comfyClass) && valueOf(origin, "noise_mask") !== false;
  return (isMasking && !isOff(origin)) || isInpainting(origin, left - 1); // other nodes pass a mask on
}

/** The samplers of a node's run, in their order: itself, or those that get its model; [null] if there is none. */
function samplersOf(node) {
  if (valueOf(node, "steps") != null) return [node];
  const found = [...new Set(samplersBehind(node))];
  const real = found.filter((one) => !one.outputs?.some(({ type }) => type === "SIGMAS")); // rather than schedulers
  const on = (real.length ? real : found).filter((one) => !isOff(one));
  if (!on.length) return [found[0] ?? null];
  const before = new Map(on.map((one) => [one, nodesBefore(one)]));
  const rank = (one) => on.filter((other) => before.get(one).has(other)).length;
  return on.sort((a, b) => rank(a) - rank(b));
}

/** The samplers that get a node's model, directly or through other nodes that change it, or through a guider. */
function samplersBehind(node, left = 8) {
  const outputs = (node.outputs ?? []).filter(({ type }) => type === "MODEL" || type === "GUIDER");
  return outputs.flatMap(({ links }) => links ?? []).flatMap((id) => {
    const link = linkBy(node.graph, id);
    const next = link && node.graph.getNodeById(link.target_id);
    if (!next) return [];
    if (valueOf(next, "steps") != null || linkOf(next, "sigmas") != null) return [next];
    return left ? samplersBehind(next, left - 1) : [];
  });
}

/** All nodes that a node depends on, itself included. */
function nodesBefore(node, found = new Set()) {
  if (found.has(node)) return found;
  found.add(node);
  for (const { link } of node.inputs ?? []) {
    const origin = originOf(node, link);
    if (origin) nodesBefore(origin, found);
  }
  return found;
}

/** The node that sets a sampler's steps. */
function scheduleOf(sampler) {
  return valueOf(sampler, "steps") == null ? originWith(sampler, "sigmas", "steps") : sampler;
}

/** A sampler's number of steps; 0 or NaN if it is unknown. */
function stepsOf(sampler) {
  return Number(valueOf(scheduleOf(sampler), "steps"));
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
    ".multirate-ras-hint { overflow: hidden; padding: 0 4px; white-space: pre-line; color: var(--descrip-text, #999);" +
    " font: 12px/17px Inter, Arial, sans-serif; }" +
    ".multirate-ras-outside { margin: 0 8px; }"; // as far in as the widgets of Nodes 2.0
  document.head.append(style);
}
