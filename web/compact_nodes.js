// Keeps nodes compact: shows the advanced inputs of the pack's nodes only if the user asks for them.
//
// Nodes 2.0 has a button for that below the inputs. The classic canvas shows all inputs; here it hides the advanced
// ones, and offers "Show Advanced" in the node's menu. While `speed` is custom, they determine what a run computes: the
// classic canvas shows them then, and Nodes 2.0 if the node was not drawn yet; otherwise the hint names the button. In a
// subgraph whose node shows `speed`, the value there counts.

import { app } from "../../scripts/app.js";
import { isSetByUser, placesOfAll, valueOf } from "./graph.js";
import { SET_GRAPH, watch } from "./watch.js";

const CUSTOM = "custom";
const ROW = 24; // height of a widget in the classic canvas
const MARK = "multirate_ras_compact"; // a property of nodes that were saved with their advanced inputs hidden

const compact = new WeakMap(); // node -> whether it last followed the speed custom, and `show`, which shows or hides

app.registerExtension({
  name: "multirate_ras.compact_nodes",

  setup: () => watch(followSpeeds),

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("RAS")) return;
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    if (advanced.length) makeCompact(node, advanced);
  },

  afterConfigureGraph: followSpeeds,
});

/** Shows or hides inputs of nodes whose speed has become custom, or something else, in the node of a subgraph. */
function followSpeeds(event) {
  const isJustOpened = event?.type === SET_GRAPH; // Nodes 2.0 has not drawn the graph's nodes yet
  for (const [node, places] of placesOfAll((one) => compact.has(one))) {
    const one = compact.get(node);
    if (!places.every(({ path }) => isSetByUser(node, "speed", path))) continue;
    const isCustom = places.some(({ path }) => valueOf(node, "speed", path) === CUSTOM);
    // In Nodes 2.0, the button of a node that is drawn already would not follow.
    const isOpen = LiteGraph.vueNodesMode && node.graph === app.canvas.graph && !isJustOpened;
    if (isCustom === one.isCustom || isOpen) continue;
    one.isCustom = isCustom;
    one.show(isCustom);
  }
}

function makeCompact(node, advanced) {
  const speed = node.widgets.find((widget) => widget.name === "speed");
  const isCustom = () => speed?.value === CUSTOM;
  /** Makes a change of the node; its height changes by as much as the inputs that it then shows. */
  const during = (change) => {
    const [height, before] = [node.size[1], node.computeSize()[1]];
    const answer = change?.();
    showOrHide(node, advanced);
    const needed = node.computeSize()[1];
    node.setSize([node.size[0], Math.max(needed, height + needed - before)]);
    node.graph?.setDirtyCanvas(true, true);
    return answer;
  };
  surround(node, "toggleAdvanced", during);
  surround(node, "onConnectionsChange", during);
  surround(node, "onConfigure", (configure, { size, properties }) => {
    const answer = configure();
    const all = properties?.[MARK] ? 0 : advanced.length;
    node.properties[MARK] = true;
    if (isCustom()) node.showAdvanced = compact.get(node).isCustom = true;
    during();
    const rows = node.showAdvanced ? 0 : all; // the file was saved with all inputs shown
    node.setSize([node.size[0], Math.max(size[1] - rows * ROW, node.computeSize()[1])]);
    return answer;
  });
  if (speed) {
    compact.set(node, { isCustom: isCustom(), show: (isShown) => during(() => (node.showAdvanced = isShown)) });
    surround(speed, "callback", (call) =>
      during(() => {
        const answer = call();
        // In Nodes 2.0 the button would not follow; there, the hint mentions the advanced inputs instead.
        if (!LiteGraph.vueNodesMode) node.showAdvanced = isCustom();
        compact.get(node).isCustom = isCustom();
        return answer;
      }),
    );
  }
  node.properties[MARK] = true;
  during();
}

/** Lets `around` make each call of a method, which may not exist yet; `around` also gets the arguments. */
function surround(owner, name, around) {
  const method = owner[name];
  owner[name] = function (...args) {
    return around(() => method?.apply(this, args), ...args);
  };
}

/** Hides the widgets from the classic canvas, unless the node shows them all or a link ends at them. */
function showOrHide(node, widgets) {
  for (const widget of widgets) {
    const isLinked = node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
    widget.hidden = !node.showAdvanced && !isLinked;
    widget.advanced = !isLinked; // the classic canvas then has the menu entry "Show Advanced"
  }
}
