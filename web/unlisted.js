// Keeps the pack's own widgets, which only show something, out of ComfyUI's list of widgets that a subgraph's node can
// show for the nodes inside.

/** Leaves a widget made by addDOMWidget out of the list. */
export function unlist(widget) {
  // The list has no widgets that are disabled, which ComfyUI determines anew for the list and for each drawing. What is
  // drawn must not be disabled: it would be half transparent, and nothing in it could be used.
  widget.disabled = true;
  const { draw } = widget;
  widget.draw = function (...args) {
    this.computedDisabled = false;
    return draw?.apply(this, args);
  };
}
