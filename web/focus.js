// Gives the keyboard back to the graph after the mouse: keys such as Delete act on the selected node only while none of
// the page's inputs has the focus.

import { app } from "../../scripts/app.js";

/** Releases the focus of what is in an element after a mouse, a pen or a finger was used there; the keyboard keeps it. */
export function releaseFocus(element) {
  const release = () => {
    if (element.contains(document.activeElement)) app.canvas.canvas.focus({ preventScroll: true });
  };
  const onPress = () => {
    const pressed = new AbortController();
    const onEnd = () => {
      pressed.abort();
      setTimeout(release); // after a slider has ended its drag
    };
    // A drag may end outside the element.
    for (const end of ["pointerup", "pointercancel"]) {
      window.addEventListener(end, onEnd, { capture: true, signal: pressed.signal });
    }
  };
  element.addEventListener("pointerdown", onPress, true);
  // A finger's click, which comes later, focuses once more. Clicks by keyboard have no detail.
  element.addEventListener("click", (event) => event.detail && release());
}
