// Shows the estimate of a sampler that is in a subgraph at the subgraph's node, if this node shows `speed`: in the
// classic canvas as a badge, in Nodes 2.0, which does not look at later badges, as a line below the widgets.

const shown = new Map(); // node of a subgraph -> the `text`, and the `badge` and the `element` that show it

/** Shows a text at a node, or nothing if the text is empty. */
export function showAt(node, text) {
  if ((shown.get(node)?.text ?? "") !== text) {
    hide(node);
    if (text) shown.set(node, { text });
    node.graph?.setDirtyCanvas(true, true);
  }
  keepShown();
}

/** Shows texts again: Nodes 2.0 may have made the element of a node anew, or the user chosen the other kind of nodes. */
export function keepShown() {
  for (const [node, one] of shown) {
    if (!node.graph) hide(node);
    else if (LiteGraph.vueNodesMode) showInElement(node, one);
    else showAsBadge(node, one);
  }
}

function hide(node) {
  const { badge, element } = shown.get(node) ?? {};
  if (badge) node.badges = node.badges.filter((one) => one !== badge);
  element?.remove();
  shown.delete(node);
}

function showAsBadge(node, one) {
  one.element?.remove();
  if (one.badge && node.badges?.includes(one.badge)) return;
  const made = new globalThis.LGraphBadge({ text: one.text, fgColor: "#ddd", bgColor: "#333" });
  one.badge = () => made;
  node.badges = [...(node.badges ?? []), one.badge];
}

function showInElement(node, one) {
  if (one.element?.isConnected) return;
  one.element ??= Object.assign(document.createElement("div"), { className: "multirate-ras-hint", textContent: one.text });
  document.querySelector(`[data-testid="node-body-${node.id}"]`)?.append(one.element);
}
