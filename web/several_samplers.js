// What the estimate says if a node has several samplers: in its line, its tooltip and a badge.

import { idOf } from "./graph.js";
import { namesOf } from "./names.js";
import { say } from "./words.js";

/**
 * The text of the line, its tooltip, and the text for a badge.
 *
 * @param told of each sampler: the text, where it comes from, the text for a badge, the least that can be said, and notes,
 *   which are not about this sampler
 * @param samplers their places
 */
export function together(told, samplers) {
  if (told.length === 1) {
    const [text, source, short, , notes] = told[0];
    return [text, [source, ...notes].filter(Boolean).join("\n"), short];
  }
  const names = namesOf(samplers.map((at) => ({ title: titleOf(at.node), id: idOf(at) })));
  const [texts, sources, shorts, least] = [0, 1, 2, 3].map((i) => merged(told.map((one) => one[i]), names));
  const reasons = [...sources.map(withNames), ...new Set(told.flatMap((one) => one[4]))].filter(Boolean);
  if (texts.length === 1) return [texts[0].text, reasons.join("\n"), shorts[0].text];
  const tooltip = [...texts.map(withNames), ...reasons].filter(Boolean).join("\n");
  // What does not fit in the node is at the end: the names.
  const common = shorts.length === 1 ? shorts : least;
  const lines = common.map(({ text, of }) => text && [text, ...(of ? [of] : [])].join(" · ")).filter(Boolean).join("\n");
  return [lines, tooltip, lines];
}

function titleOf({ title, comfyClass }) {
  return title || comfyClass;
}

/** The different texts in their order, each with the names that it is `of`, unless it is of all. */
function merged(texts, names) {
  const different = [...new Set(texts)];
  return different.map((text) => {
    const of = names.filter((_, i) => texts[i] === text).join(", ");
    return { text, of: different.length > 1 ? of : "" };
  });
}

function withNames({ text, of }) {
  return text && of ? say("estimated", { run: of, text }) : text;
}
