// Shows a line in RAS Patch Model, RAS KSampler and RAS Compare that estimates, from the plan of the chosen speed, how
// long a run with RAS will take and how close its image will be. If RAS Calibrate has saved plans for the graph's model
// and image size, the server takes the plan from these. If RAS Calibrate is connected to the node, its plan is shown once
// it is saved.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chainOf, inputOf, isOff, isSetByUser, linkOf, originOf, placeOf, valueOf } from "./graph.js";
import { keepShown, showAt } from "./hint_badge.js";
import { hasModel, modelOf, sourceOf } from "./model_source.js";
import { HAVE_SETTINGS, isInpainting, replaces, samplersOf, scheduleOf, sizeOf, solverOf, stepsOf } from "./samplers.js";
import { together } from "./several_samplers.js";
import { unlist } from "./unlisted.js";
import { watch } from "./watch.js";
import { say } from "./words.js";

const ROUTE = "/multirate_ras/hint";
const COMPARE = "RASCompare";
const WIDGET = "multirate_ras_hint";
const HEIGHT = 34; // two lines
const MARGIN = 4;
const WAIT = 250; // milliseconds from a change of the graph to the request
const USUAL_STEPS = 28;
const CLOSENESS = [[34, "same"], [30, "near"], [26, "close"], [-Infinity, "similar"]]; // from this many dB on: key in words.js

const UNMEASURED = { // word of the server's answer, or of this script: keys in words.js, in the tooltip and in the line
  cfg: ["whyCfg", "noCfg"],
  few: ["whyFew", "noneSkipped"],
  small: ["whySmall", "small"],
  low: ["whyLow", "low"],
  sampler: ["whySampler"],
  inpainting: ["whyInpainting"],
  family: ["whyFamily"],
  missing: ["whyMissing"],
  steps: ["whySteps"],
};

const hints = new Set();
let timer = 0;

app.registerExtension({
  name: "multirate_ras.hint",

  setup() {
    watch(() => {
      keepShown();
      updateAll(); // at once, as web/compact_nodes.js does: else the hint would follow the speed before the inputs do
    });
    api.addEventListener("execution_success", () => {
      hints.forEach((hint) => (hint.asked = "")); // RAS Calibrate may have saved plans
      askSoon();
    });
    addStyle();
  },

  nodeCreated(node) {
    if (HAVE_SETTINGS.has(node.comfyClass)) hints.add(new Hint(node));
    askSoon();
  },

  afterConfigureGraph: askSoon,
});

function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(updateAll, WAIT);
}

function updateAll() {
  hints.forEach((hint) => hint.update());
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
    if (isOff(node) || !hasModel(placeOf(node))) return this.show("", "");
    const speed = valueOf(node, "speed");
    const behind = samplersOf(node);
    const known = behind.filter((one) => one.node === node || !replaces(one));
    if (behind.length && !known.length) return this.show("", say("replaced", { node: behind[0].node.title }));
    const samplers = known.length ? known : [null];
    const steps = samplers.map(stepsOf);
    if (speed === "custom") {
      const hasGain = steps.some((total) => hasRegionalStep(node, total));
      if (!hasGain) return this.show("", say("customAllDense"), "", say("customNoGain"));
      // In Nodes 2.0, choosing custom does not show them: the button of a node that is drawn already would not follow.
      const isHidden = globalThis.LiteGraph?.vueNodesMode && !node.showAdvanced;
      return this.show("", say(isHidden ? "customHidden" : "custom"), "", say("customInside"), say("customInside"));
    }
    const plan = linkOf(node, "plan");
    const calibration = plan == null ? null : originOf(node, plan);
    if (plan != null && calibration?.comfyClass !== "RASCalibrate") return this.show("", say("plan"));
    const queries = samplers.map((sampler) => this.queryOf(sampler, calibration));
    // All that the text depends on.
    const titles = behind.map((one) => one.node.title);
    const asked = JSON.stringify([...queries.map(String), ...steps, ...titles, Boolean(calibration)]);
    if (asked === this.asked) return;
    this.asked = asked;
    const answers = await Promise.all(queries.map(estimateOf));
    if (this.asked !== asked) return;
    if (answers.includes(null)) return this.show(asked, ""); // what it says is about other settings; the next change asks again
    const isUnmeasured = answers.some(({ measured, time }) => measured == null && time < 1);
    if (calibration && isUnmeasured) return this.show(asked, say("plan"));
    const told = answers.map((answer, i) => this.tell(answer, speed, steps[i], isInpainting(samplers[i])));
    const [text, tooltip, short] = together(told, samplers);
    const others = behind.filter((one) => !known.includes(one)).map(({ node }) => say("replaced", { node: node.title }));
    this.show(asked, text, [tooltip, ...new Set(others)].filter(Boolean).join("\n"), short);
  }

  /** What the server is asked about the run of a sampler, which may be unknown, or its steps: then a usual run. */
  queryOf(sampler, calibration) {
    const { node } = this;
    return new URLSearchParams({
      speed: valueOf(node, "speed"),
      steps: stepsOf(sampler) || USUAL_STEPS,
      denoise: inputOf(scheduleOf(sampler), "denoise") ?? "",
      sampler: inputOf(solverOf(sampler), "sampler_name") ?? "",
      cfg: inputOf(sampler, "cfg") ?? "",
      ...(isInpainting(sampler) ? { inpainting: 1 } : {}),
      ...modelOf(node),
      ...sourceOf(calibration ?? node),
      ...sizeOf(calibration ? placeOf(calibration) : sampler ?? placeOf(node)),
    });
  }

  /** Shows the estimate at the nodes of the subgraphs that show the speed, and no longer at those that did. */
  showOutside() {
    const hosts = this.node.graph ? chainOf(this.node, "speed").slice(1).map(({ node }) => node) : [];
    for (const host of this.hosts ?? []) if (!hosts.includes(host)) showAt(host, "");
    for (const host of hosts) showAt(host, this.short ?? "", this.short ? this.long : "");
    this.hosts = hosts;
  }

  /** Of an answer: the text, where it comes from, the text for a badge, the least that can be said, and notes. */
  tell({ time, steps, closeness, measured, unknown, unmeasured }, speed, total, inpaints) {
    const marked = (text) => (inpaints ? say("ofInpainting", { text }) : text);
    if (time >= 1) return noGain(steps, total, marked);
    const share = say("time", { share: Math.round(time * 100) });
    if (!total) unmeasured = "steps"; // the answer is for another number of steps
    if (unknown) [total, unmeasured] = [null, "missing"]; // how many steps depends on the model, whose file is missing
    if (!total) steps = closeness = null;
    const alone = marked(share);
    const least = inpaints ? marked(`${Math.round(time * 100)}\u00a0%`) : share; // beside a sampler's name, in one line
    const first = steps ? share : alone;
    // RAS Compare makes three runs; the estimate is of one of them.
    const parts = [this.node.comfyClass === COMPARE ? say("estimated", { run: say("with"), text: first }) : first];
    if (steps) parts.push(marked(say("steps", { steps, total })));
    else if (total) parts.push(say("keepsSteps", { total }));
    const short = parts.slice(0, steps ? 2 : 1).join(" · "); // a badge is not much wider than a node
    if (measured != null) {
      const source = total ? say("measuredSource", { speed, dB: measured.toFixed(1) }) : say("measuredTime", { speed });
      return [[...parts, say("measured")].join(" · "), source, short, least, []];
    }
    const [why, inLine] = closeness ? [] : UNMEASURED[unmeasured] ?? [];
    if (closeness) parts.push(say(CLOSENESS.find(([from]) => closeness >= from)[1]));
    else if (inLine) parts.push(say(inLine));
    const told = closeness ? say("closeness", { dB: Math.round(closeness) }) : why ? say(why) : "";
    const source = say("source", { speed, closeness: told }).trim();
    return [parts.join(" · "), source, short, least, [closeness ? say("reference") : "", say("calibrate")]];
  }

  /** Shows a text in the node, and at the nodes of the subgraphs that show the speed a short one with a long tooltip. */
  show(asked, text, tooltip = "", short = text, long = [text, tooltip].filter(Boolean).join("\n")) {
    this.asked = asked;
    Object.assign(this, { short, long });
    if (this.element.textContent !== text) this.element.textContent = text;
    this.element.className = text.includes("\n") ? "multirate-ras-hint multirate-ras-lines" : "multirate-ras-hint";
    this.element.title = tooltip;
    this.showOutside();
  }
}

/** The same texts of a run that takes as long as without RAS; empty ones if that may depend on the number of steps. */
function noGain(steps, total, marked) {
  const none = say("none");
  if (total && steps != null) return [say("few"), "", say("noGain"), none, []];
  const text = marked(none) === none ? "" : marked(none);
  return [text, "", text, text, []];
}

/** The server's answer; null if there is none. */
async function estimateOf(query) {
  const answer = await api.fetchApi(`${ROUTE}?${query}`).catch(() => null);
  return answer?.ok ? answer.json() : null;
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

function addStyle() {
  const style = document.createElement("style");
  style.textContent =
    ".multirate-ras-hint { overflow: hidden; padding: 0 4px; white-space: pre-line; color: var(--descrip-text, #999);" +
    " font: 12px/17px Inter, Arial, sans-serif; }" +
    ".multirate-ras-lines { white-space: pre; text-overflow: ellipsis; }" + // each stays one line
    ".multirate-ras-outside { margin: 0 8px; }"; // as far in as the widgets of Nodes 2.0
  document.head.append(style);
}
