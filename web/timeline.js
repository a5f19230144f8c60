// The steps of a run as bars, and a slider over them for mouse and keyboard.

import { releaseFocus } from "./focus.js";
import { COLOURS } from "./mask_overlay.js";
import { percent, say } from "./words.js";

const HEIGHT = 34;
const MARKER = 6; // height of the triangle under the chosen step
const KEYS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"]);

/** One line of text about a step of `total`; `form` is "step", or "caption" for a narrow node. */
export function describeStep(index, total, step, form = "step") {
  return say(form, { step: index + 1, total, kind: say(step.kind), share: percent(step.share) });
}

export class Timeline {
  /** @param onChoose called with a step's index when the user moves the slider */
  constructor(onChoose) {
    this.element = document.createElement("div");
    this.element.className = "multirate-ras-timeline";
    this.bars = document.createElement("canvas");
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.min = this.slider.step = "1";
    this.slider.setAttribute("aria-label", say("slider"));
    this.slider.addEventListener("input", () => onChoose(Number(this.slider.value) - 1));
    keepToItself(this.slider);
    releaseFocus(this.element);
    this.element.append(this.bars, this.slider);
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
    this.show(new Map(), 0, 0, false);
  }

  /**
   * @param steps step index -> { kind, share }
   * @param total number of steps of the run
   * @param chosen index of the step that is shown
   * @param isOver whether the run has ended, so that the user can choose a step
   */
  show(steps, total, chosen, isOver) {
    Object.assign(this, { steps, total, chosen });
    this.slider.disabled = !isOver;
    this.slider.max = String(Math.max(total, 1));
    this.slider.value = String(chosen + 1);
    this.slider.style.setProperty("--thumb", `${100 / Math.max(total, 1)}%`);
    const step = steps.get(chosen);
    if (step) this.slider.setAttribute("aria-valuetext", describeStep(chosen, total, step));
    this.draw();
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width || !this.total) return;
    const ratio = window.devicePixelRatio || 1;
    this.bars.width = Math.round(width * ratio);
    this.bars.height = Math.round(HEIGHT * ratio);
    const context = this.bars.getContext("2d");
    context.scale(ratio, ratio);
    const ink = getComputedStyle(this.element).color;
    const slot = width / this.total;
    for (let index = 0; index < this.total; index++) {
      drawBar(context, index * slot, slot, this.steps.get(index), ink);
    }
    drawMarker(context, (this.chosen + 0.5) * slot, ink);
  }

  /** Removes the timeline and all references of the page to it. */
  remove() {
    this.resized.disconnect();
    this.element.remove();
  }
}

/** Draws a bar whose height is the share of tokens, or a thin line for a step that is not known yet. */
function drawBar(context, x, slot, step, ink) {
  const room = HEIGHT - MARKER - 2;
  const height = step ? Math.max(step.share * room, 2) : 1;
  context.globalAlpha = step ? 1 : 0.35;
  context.fillStyle = step ? COLOURS[step.kind] : ink;
  const gap = slot > 4 ? 1 : 0;
  context.fillRect(x + gap, room - height, slot - 2 * gap, height);
  context.globalAlpha = 1;
}

function drawMarker(context, x, ink) {
  context.fillStyle = ink;
  context.beginPath();
  context.moveTo(x, HEIGHT - MARKER);
  context.lineTo(x - 5, HEIGHT);
  context.lineTo(x + 5, HEIGHT);
  context.fill();
}

/** Stops events of the slider, with which ComfyUI's canvas would move the node or handle the arrow keys. */
function keepToItself(slider) {
  slider.addEventListener("pointerdown", (event) => event.stopPropagation());
  slider.addEventListener("keydown", (event) => KEYS.has(event.key) && event.stopPropagation());
}
