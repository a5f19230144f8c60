// The live view: which regions a RAS run computes, in the node that samples, while it runs and afterwards.
//
// The server sends messages only to a browser that said it watches, for prompts that this browser queued.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { LivePanel } from "./live_panel.js";

const EVENT = "multirate_ras.live";
const ROUTE = "/multirate_ras/live";
const SETTING = "MultirateRAS.LiveView";

const panels = new Map(); // node id as the server knows it -> LivePanel
const finishedSteps = new Map(); // the same -> steps that the host counted in this run
let announced = null; // what the server was told last
let isEnabled = true;
let promptId = null; // the prompt that runs
let foreignPromptId = null; // one that was running when another workflow came into view

// Here and not in `setup`: ComfyUI loads extensions before it listens itself, so we are asked first, and the
// node shows one picture (ours, with the preview in it) instead of two.
api.addEventListener("b_preview_with_metadata", takePreview);

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
    api.addEventListener(EVENT, ({ detail }) => receive(detail));
    api.addEventListener("progress_state", ({ detail }) => countSteps(detail));
    api.addEventListener("status", announce);
    api.addEventListener("reconnected", () => announce(true));
    api.addEventListener("execution_start", ({ detail }) => {
      promptId = detail.prompt_id;
      dropRunning();
    });
    // After an interrupt or an error nothing may look as if it were going on; after success nothing is.
    for (const end of ["execution_interrupted", "execution_error", "execution_success"]) {
      api.addEventListener(end, dropRunning);
    }
    announce();
  },

  beforeConfigureGraph() {
    foreignPromptId = promptId;
    [...panels.keys()].forEach(drop);
  },
});

// --- with the server ----------------------------------------------------------------------------------

function setEnabled(value) {
  isEnabled = value !== false;
  if (!isEnabled) [...panels.keys()].forEach(drop);
  announce();
}

/** Says whether this browser watches; again after a lost connection, when the server may be a new one. */
async function announce(again = false) {
  const client_id = api.clientId;
  const news = `${client_id} ${isEnabled}`;
  if (!client_id || (news === announced && again !== true)) return;
  announced = news;
  try {
    await api.fetchApi(ROUTE, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ client_id, enabled: isEnabled }),
    });
  } catch {
    announced = null; // the server is away; the next status message tries again
  }
}

function receive(message) {
  if (!isEnabled || message.prompt_id === foreignPromptId) return;
  if (message.phase === "step") {
    panelOf(message.node)?.showStep(message);
  } else if (message.finished) {
    panels.get(message.node)?.showTimeline(message);
  } else {
    drop(message.node);
  }
}

function countSteps({ prompt_id, nodes }) {
  for (const [key, state] of Object.entries(nodes)) {
    const id = state.display_node_id ?? key;
    finishedSteps.set(id, state.value);
    // A node that now samples without RAS has no use for the timeline of the run before.
    const panel = panels.get(id);
    const isSampling = state.state === "running" && state.value > 0;
    if (isSampling && panel && !panel.isRunning && panel.run.promptId !== prompt_id) drop(id);
  }
}

/** The host's preview of a node that shows the live view goes into that view instead. */
function takePreview(event) {
  const { blob, displayNodeId } = event.detail;
  const panel = panels.get(displayNodeId);
  if (!panel?.isRunning) return;
  panel.addPreview(Math.max((finishedSteps.get(displayNodeId) ?? 1) - 1, 0), blob);
  // Inside a subgraph the host also shows it on the nodes around, which have no view of their own.
  if (panel.hasPlace && !displayNodeId.includes(":")) event.stopImmediatePropagation();
}

// --- panels -------------------------------------------------------------------------------------------

function panelOf(id) {
  const node = findNode(id);
  if (!node?.addDOMWidget) return null;
  if (panels.get(id)?.node !== node) {
    drop(id);
    panels.set(id, new LivePanel(node));
    dropWithNode(id, node);
  }
  return panels.get(id);
}

/** The node of an id such as "3", or "12:5" for node 5 in the subgraph that is node 12. */
function findNode(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of id.split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function dropWithNode(id, node) {
  const { onRemoved } = node;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    if (panels.get(id)?.node === node) drop(id);
  };
}

function drop(id) {
  panels.get(id)?.remove();
  panels.delete(id);
}

function dropRunning() {
  finishedSteps.clear();
  for (const [id, panel] of panels) {
    if (panel.isRunning) drop(id);
  }
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./live_view.css", import.meta.url).href;
  document.head.append(link);
}
