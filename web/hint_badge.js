// Shows the estimate of a sampler that is in a subgraph at the subgraph's node, if this node shows `speed`: in the
// classic canvas as a badge, in Nodes 2.0, which does not look at later badges, as a line below the widgets.

const SEPARATOR = " · "; // where a line of a badge may end
const LINE = 16; // height in pixels

const shown = new Map(); // node of a subgraph -> `text`, `tooltip`, and the `badge` and the `element` that show them

/** Shows a text at a node, or nothing if the text is empty. */
export function showAt(node, text, tooltip = "") {
  const last = shown.get(node);
  if ((last?.text ?? "") !== text || (last?.tooltip ?? "") !== tooltip) {
    hide(node);
    if (text) shown.set(node, { text, tooltip });
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

function showInElement(node, one) {
  if (one.element?.isConnected) return;
  const look = { className: "multirate-ras-hint multirate-ras-outside", textContent: one.text, title: one.tooltip };
  one.element ??= Object.assign(document.createElement("div"), look);
  const body = document.querySelector(`[data-testid="node-body-${node.id}"]`);
  body?.insertBefore(one.element, body.querySelector(":scope > .multirate-ras-live")); // above a live view
}

// --- a badge that is no wider than its node ---------------------------------------------------------------

function showAsBadge(node, one) {
  one.element?.remove();
  if (one.badge && node.badges?.includes(one.badge)) return;
  const made = new globalThis.LGraphBadge({ text: one.text, fgColor: "#ddd", bgColor: "#333" });
  Object.assign(made, { getWidth, draw, room: () => node.width ?? node.size[0] });
  made.ruler = document.createElement("canvas").getContext("2d");
  made.ruler.font = `${made.fontSize}px sans-serif`;
  one.badge = () => withLines(made); // called for each drawing; the node may have another width then
  node.badges = [...(node.badges ?? []), one.badge];
}

function withLines(badge) {
  const width = (text) => badge.ruler.measureText(text).width;
  const room = badge.room() - 2 * badge.padding;
  badge.lines = wrapped(badge.text, room, width);
  badge.width = Math.max(...badge.lines.map(width)) + 2 * badge.padding;
  badge.height = LINE * badge.lines.length + 4;
  return badge;
}

/** The lines of a text; a part that is longer than a line ends with an ellipsis. `width` measures a text. */
export function wrapped(text, room, width) {
  return text.split("\n").flatMap((paragraph) => {
    const lines = [];
    for (const part of paragraph.split(SEPARATOR)) {
      const longer = lines.length ? lines.at(-1) + SEPARATOR + part : part;
      if (lines.length && width(longer) <= room) lines[lines.length - 1] = longer;
      else lines.push(cut(part, room, width));
    }
    return lines;
  });
}

function cut(text, room, width) {
  if (width(text) <= room) return text;
  const letters = [...text];
  while (letters.length && width(`${letters.join("").trimEnd()}…`) > room) letters.pop();
  return `${letters.join("").trimEnd()}…`;
}

/** LGraphBadge's method, for several lines. */
function getWidth() {
  return this.width;
}

/** LGraphBadge's method, for several lines. */
function draw(context, x, y) {
  context.save();
  context.fillStyle = this.bgColor;
  context.beginPath();
  context.roundRect(x, y, this.width, this.height, this.cornerRadius);
  context.fill();
  Object.assign(context, { fillStyle: this.fgColor, font: this.ruler.font, textAlign: "left", textBaseline: "middle" });
  this.lines.forEach((line, i) => context.fillText(line, x + this.padding, y + 3 + LINE * (i + 0.5)));
  context.restore();
}
