// The live view shows in the sampler node which regions a RAS run computes, while it runs and afterwards.
//
// The server sends messages only to a browser that has announced that it watches, about prompts that this browser
// has queued.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import {
  drop, dropAll, dropRunning, dropUnpatched, forget, keep, lastNode, openWorkflow, openWorkflowItself, reappear, restoreKept, viewOf, views,
} from "./views.js";
import { watch } from "./watch.js";

const EVENT = "multirate_ras.live";
const KEY_EVENT = "multirate_ras.key";
const ROUTE = "/multirate_ras/live";
const LONGEST_OPENING = 4000; // milliseconds
const LONGEST_DRAWING = 4000; // milliseconds from opening a graph until its nodes are there
const SETTING = "MultirateRAS.LiveView";

const finishedSteps = new Map(); // node id -> number of steps that ComfyUI has counted in this run
let announced = null; // last announcement to the server
let key = ""; // shows the server that this browser receives the messages of its client id
let isEnabled = true;
let promptId = null; // the running prompt
let leftWorkflow = null; // the workflow that was open before the current graph was loaded
let foreignPromptId = null; // a prompt that was running when the user opened another workflow
const queuedIn = new Map(); // id of a prompt that this page has queued -> the workflow (an object) that was open then

// Not in `setup`: ComfyUI loads extensions before it adds its own listener, so this one is called first, and the
// node shows one image (this panel with the preview in it) instead of two.
api.addEventListener("b_preview_with_metadata", takePreview);

// Not in `setup` either: the setting's first `onChange` announces before it.
api.addEventListener(KEY_EVENT, ({ detail }) => {
  key = detail.key;
  announce(true);
});

app.registerExtension({
  name: "multirate_ras.live_view",

  settings: [
    {
      id: SETTING,
      name: "Multirate RAS: live view",
      category: ["Multirate RAS", "Sampling", "Live view"],
      tooltip: "Show in the sampler node which regions each step computes.",
      type: "boolean",
      defaultValue: true,
      onChange: setEnabled,
    },
  ],

  setup() {
    addStyle();
    noteWhereQueued();
    api.addEventListener(EVENT, ({ detail }) => receive(detail));
    api.addEventListener("progress_state", ({ detail }) => countSteps(detail));
    api.addEventListener("status", announce);
    api.addEventListener("reconnected", () => announce(true));
    api.addEventListener("execution_start", ({ detail }) => {
      promptId = detail.prompt_id;
      endAll();
    });
    // Removes panels of runs that have not finished. After a success there are none.
    for (const end of ["execution_interrupted", "execution_error", "execution_success"]) {
      api.addEventListener(end, endAll);
      api.addEventListener(end, ({ detail }) => queuedIn.delete(detail?.prompt_id));
    }
    app.canvas.canvas.addEventListener("litegraph:set-graph", enter);
    watch(dropUnpatched);
    announce();
  },

  beforeConfigureGraph() {
    foreignPromptId = promptId;
    leftWorkflow = openWorkflow();
    dropAll();
  },

  afterConfigureGraph() {
    const [left, start] = [leftWorkflow, performance.now()];
    // The front end reports the newly opened workflow only later; after an undo, the workflow is the same.
    const restore = () => {
      if (openWorkflow() === left && performance.now() <= start + LONGEST_OPENING) return setTimeout(restore, 100);
      // From now on, the workflow in which it was queued tells whether it is shown.
      if (openWorkflow() !== left && queuedIn.has(foreignPromptId)) foreignPromptId = null;
      restoreKept();
    };
    restore();
  },
});

/** The user has opened a subgraph, or has left one. */
function enter() {
  const end = performance.now() + LONGEST_DRAWING;
  const show = () => {
    if (!reappear() && performance.now() < end) setTimeout(show, 100);
  };
  setTimeout(show); // after Nodes 2.0 has removed the elements of the graph that was open
}

function endAll() {
  finishedSteps.clear();
  dropRunning();
}

// --- with the server ----------------------------------------------------------------------------------

function setEnabled(value) {
  isEnabled = value !== false;
  if (!isEnabled) dropAll();
  announce();
}

/** Tells the server whether this browser watches; again after a lost connection, as the server may have restarted. */
async function announce(again = false) {
  const client_id = api.clientId;
  const announcement = `${client_id} ${isEnabled}`;
  if (!client_id || (announcement === announced && again !== true)) return;
  announced = announcement;
  try {
    const answer = await api.fetchApi(ROUTE, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ client_id, enabled: isEnabled, key }),
    });
    if (answer.status !== 200) announced = null; // the key is on its way; if not, the next status message asks again
  } catch {
    announced = null; // the server does not answer; the next status message tries again
  }
}

/** Remembers in which workflow each prompt is queued: nodes of another one may have the same ids. */
function noteWhereQueued() {
  const { queuePrompt } = api;
  api.queuePrompt = async function () {
    const workflow = openWorkflowItself();
    const answer = await queuePrompt.apply(this, arguments);
    if (answer?.prompt_id) queuedIn.set(answer.prompt_id, workflow);
    return answer;
  };
}

function isForeign(id) {
  return id === foreignPromptId || (queuedIn.has(id) && queuedIn.get(id) !== openWorkflowItself());
}

function receive(message) {
  if (!isEnabled || isForeign(message.prompt_id)) return;
  if (message.phase === "step") {
    viewOf(message.node)?.each((panel) => panel.showStep(message));
    addPreview(message);
  } else if (message.finished) {
    views.get(message.node)?.each((panel) => panel.showTimeline(message));
    addPreview(message);
    if (views.has(message.node)) keep(message.node);
  } else {
    drop(message.node);
  }
}

/** Adds the small image that the server sends if ComfyUI makes no previews. */
function addPreview({ node, preview }) {
  if (!preview) return;
  const [step, base64] = preview;
  const blob = new Blob([Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0))], { type: "image/jpeg" });
  views.get(node)?.each((panel) => panel.addPreview(step, blob));
}

function countSteps({ prompt_id, nodes }) {
  if (isForeign(prompt_id)) return;
  for (const [key, state] of Object.entries(nodes)) {
    const id = state.display_node_id ?? key;
    finishedSteps.set(id, state.value);
    // A node that now samples without RAS must not show the timeline of its last run.
    const view = views.get(id);
    const isSampling = state.state === "running" && state.value > 0;
    if (isSampling && view && !view.isRunning && view.promptId !== prompt_id) {
      forget(id);
      drop(id);
    }
  }
}

/** Draws ComfyUI's preview in the live view, if the node has one, instead of below the node. */
function takePreview(event) {
  const { blob, displayNodeId, promptId } = event.detail;
  if (isForeign(promptId)) return;
  const view = views.get(displayNodeId);
  if (!view?.isRunning) {
    if (isEnabled && lastNode(displayNodeId)?.comfyClass === "RASCompare") event.stopImmediatePropagation();
    return; // RAS Compare does not show its warm-up
  }
  const step = Math.max((finishedSteps.get(displayNodeId) ?? 1) - 1, 0);
  view.each((panel) => panel.addPreview(step, blob));
  if (view.hasPlace) event.stopImmediatePropagation();
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./live_view.css", import.meta.url).href;
  document.head.append(link);
}
