// Greys out the inputs that have no effect with the chosen speed: those that count only while `speed` is custom, and
// RAS KSampler's scheduler, if the plan of the speed replaces its noise levels. A subgraph's node that shows such an
// input follows the same rule, unless the input has an effect on another node inside.

import { app } from "../../scripts/app.js";
import { chainOf, inputOf, isSetByUser, placesBehind, placesOfAll, valueOf, widgetOf } from "./graph.js";
import { watch } from "./watch.js";

const CUSTOM = "custom";
const OF_CUSTOM = ["sample_ratio", "start_percent", "end_percent", "error_reset_every", "kv_cache"]; // as in nodes/settings.py
const SCHEDULER = "scheduler";
const PLANNED = ["euler", "dpmpp_2m"]; // samplers that use a plan's noise levels
const FEW_STEPS = 8; // up to here, RAS stays out of a run; as in ras_core/method/few_steps.py
const FROM_NOISE = [ // schedulers that begin with pure noise; a plan keeps the first noise level of others
  "simple", "sgm_uniform", "karras", "exponential", "normal", "beta", "linear_quadratic", "kl_optimal",
];
const WATCHED = ["speed", "sampler_name", SCHEDULER, "steps", "denoise"]; // what is unused depends on these

let greyed = []; // widgets

app.registerExtension({
  name: "multirate_ras.unused_inputs",

  setup: () => watch(updateAll),

  nodeCreated(node) {
    if (!hasSettings(node)) return;
    for (const widget of WATCHED.map((name) => widgetOf(node, name)).filter(Boolean)) {
      const { callback } = widget;
      widget.callback = function () {
        const answer = callback?.apply(this, arguments);
        updateAll();
        return answer;
      };
    }
    for (const [widget, isUnused] of unusedOf([{ node, path: [] }])) mark(widget, isUnused); // before it is in a graph
  },

  afterConfigureGraph: updateAll,
});

function hasSettings(node) {
  return node.comfyClass?.startsWith("RAS") && OF_CUSTOM.every((name) => widgetOf(node, name));
}

/** Looks at all nodes, also those in subgraphs: several nodes may show the same subgraph. */
function updateAll() {
  const unused = unusedOf([...placesOfAll(hasSettings).values()].flat());
  for (const widget of greyed) if (!unused.has(widget)) mark(widget, false); // its links have changed
  for (const [widget, isUnused] of unused) mark(widget, isUnused);
  greyed = [...unused.keys()].filter((widget) => unused.get(widget));
}

/** By widget of the nodes at some places, and of the nodes of subgraphs that show these widgets: whether it is unused. */
function unusedOf(places) {
  const unused = new Map();
  const note = (widget, isUnused) => widget && unused.set(widget, isUnused && (unused.get(widget) ?? true));
  for (const { node, path } of places) {
    for (const name of [...OF_CUSTOM, SCHEDULER]) {
      const [, ...hosts] = chainOf(node, name, path);
      note(widgetOf(node, name), isUnusedAt({ node, path, name }));
      hosts.forEach((host, i) => {
        const slot = host.node.inputs.findIndex((one) => one.name === host.name);
        const behind = placesBehind({ node: host.node, path: path.slice(0, -1 - i) }, slot);
        note(widgetOf(host.node, host.name), behind.every(isUnusedAt));
      });
    }
  }
  return unused;
}

/** Whether the input of this name has no effect on a run of the node at a place. */
function isUnusedAt({ name, ...at }) {
  if (!hasSettings(at.node) || !hasPlan(at)) return false;
  return name === SCHEDULER ? replacesLevels(at) : OF_CUSTOM.includes(name);
}

function hasPlan({ node, path }) {
  const value = isSetByUser(node, "speed", path) ? valueOf(node, "speed", path) : undefined;
  return value !== undefined && value !== CUSTOM;
}

/**
 * Whether the plan of a run replaces all noise levels of the scheduler. With denoise below 1, the first one stays.
 * RAS Compare uses the scheduler for the run without RAS.
 */
function replacesLevels(at) {
  const [sampler, scheduler, steps, denoise] = ["sampler_name", SCHEDULER, "steps", "denoise"].map((name) => inputOf(at, name));
  if (at.node.comfyClass !== "RASKSampler" || !PLANNED.includes(sampler)) return false;
  return FROM_NOISE.includes(scheduler) && steps > FEW_STEPS && denoise === 1;
}

function mark(widget, isUnused) {
  if (!widget || Boolean(widget.disabled) === isUnused) return;
  widget.disabled = isUnused;
  app.canvas?.setDirty(true, true);
}
