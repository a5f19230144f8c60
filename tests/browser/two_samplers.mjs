// A subgraph's node that contains two samplers: their live views, the estimate, and the node without them.

import { NEW_SEED, prepare } from "./prepare.mjs";

/** Two passes of ComfyUI's KSampler behind one RAS Patch Model, all in a subgraph; then a run without RAS. */
export async function twoSamplers(browser, { workflow, sampler }) {
  const page = await browser.open();
  await page.setting("Comfy.Execution.PreviewMethod", "none"); // ComfyUI's previews would take the views' place
  await prepare(page, workflow, sampler, { size: 128 });
  await page.page.evaluate(replace, sampler);
  await page.settle(500);
  const estimate = await page.until(() => page.estimateOutside(), Boolean);
  const [before, boxes] = [await measure(page), await page.until(() => boxOfEstimate(page))];
  const ends = [await runAgain(page)];
  const isOver = (panels) => panels.length === 2 && panels.every((one) => one.isOver);
  const panels = await page.until(() => panelsOnPage(page), isOver);
  await page.screenshot("two_samplers");
  const equal = await equalTitles(page);
  const after = await measure(page);
  const inside = await bypassInside(page);
  ends.push(await runAgain(page));
  await page.until(() => page.shownPanels(), (widths) => widths.length === 0);
  await page.settle(500);
  await page.screenshot("two_samplers_without");
  const without = await measure(page);
  await page.setting("Comfy.Execution.PreviewMethod", "default");
  return { ends, estimate, boxes, before, panels, equal, inside, after, without, problems: page.problems };
}

/** In the page: puts RAS Patch Model and two samplers in the place of the given one, and these in a subgraph. */
function replace(type) {
  const old = app.graph.nodes.find((node) => node.type === type);
  const [patch, first, second] = ["RASPatchModel", "KSampler", "KSampler"].map((one) => LiteGraph.createNode(one));
  const from = (name) => old.getInputNode(old.findInputSlot(name));
  const set = (node, values) => {
    for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
  };
  [patch, first, second].forEach((node, i) => {
    node.pos = [old.pos[0] + 400 * i, old.pos[1]];
    app.graph.add(node);
  });
  from("model").connect(0, patch, "model");
  set(patch, { speed: "2x" });
  for (const [i, node] of [first, second].entries()) {
    patch.connect(0, node, "model");
    for (const name of ["positive", "negative"]) from(name).connect(0, node, name);
    set(node, { steps: i ? 6 : 16, cfg: 3.5, denoise: i ? 0.7 : 1 });
  }
  from("latent_image").connect(0, first, "latent_image");
  first.connect(0, second, "latent_image");
  second.title = "Second pass";
  second.connect(0, app.graph.nodes.find((node) => node.type === "VAEDecode"), "samples");
  app.graph.nodes.filter((node) => node.type === "RASMaskPreview").forEach((node) => app.graph.remove(node));
  app.graph.remove(old);
  window.subgraphNode = app.graph.convertToSubgraph(new Set([patch, first, second])).node;
  const { subgraph } = window.subgraphNode;
  const inside = subgraph.nodes.find((node) => node.type === "RASPatchModel");
  subgraph.addInput("speed", "COMBO").connect(inside.inputs[inside.findInputSlot("speed")], inside); // shown outside
  window.patchNode = inside;
  app.canvas.centerOnNode(window.subgraphNode);
}

/** Bypasses RAS Patch Model as a user does, in the opened subgraph; returns the live views there. */
async function bypassInside(page) {
  await page.page.evaluate(() => {
    app.canvas.setGraph(window.subgraphNode.subgraph);
    app.canvas.centerOnNode(window.patchNode);
  });
  const panels = await page.until(() => panelsOnPage(page), (found) => found.length === 2);
  await page.screenshot("two_samplers_inside");
  await page.page.evaluate(() => {
    window.patchNode.mode = 4;
    app.canvas.setGraph(app.graph);
    app.canvas.centerOnNode(window.subgraphNode);
  });
  await page.settle(1000);
  return panels;
}

/** A run with samplers of the same title: what the estimate says, and the titles of the views. */
async function equalTitles(page) {
  const entitle = (title) => page.page.evaluate((title) => {
    window.subgraphNode.subgraph.nodes.filter((one) => one.type === "KSampler").at(-1).title = title;
  }, title);
  await entitle("KSampler");
  await runAgain(page);
  const titles = await page.until(() => panelsOnPage(page), (panels) => panels.every((one) => one.isOver && one.title.includes("#")));
  const estimate = await page.until(() => page.estimateOutside(), (text) => text.includes("#"));
  await page.screenshot("two_samplers_equal");
  await entitle("Second pass");
  return { estimate, titles: titles.map((one) => one.title) };
}

async function runAgain(page) {
  await page.page.evaluate((seed) => {
    for (const node of window.subgraphNode.subgraph.nodes.filter((one) => one.type === "KSampler")) {
      node.widgets.find((one) => one.name === "seed").value = seed;
    }
  }, NEW_SEED());
  return (await page.queue()).end();
}

/** The subgraph's node: its height on the page, and the one that a saved workflow has. */
async function measure(page) {
  const saved = await page.page.evaluate(() => window.subgraphNode.serialize().size[1]);
  return { height: await page.heightOfSubgraph(), saved };
}

/** The live views that the user sees, from the top. */
function panelsOnPage(page) {
  return page.page.evaluate(() => {
    const shown = [...document.querySelectorAll(".multirate-ras-live")].filter((one) => one.checkVisibility());
    const panels = shown.map((one) => {
      const { top, bottom } = one.getBoundingClientRect();
      const title = one.querySelector(".multirate-ras-title")?.textContent;
      return { top, bottom, title, isOver: !one.querySelector("input").disabled };
    });
    return panels.sort((a, b) => a.top - b.top);
  });
}

/** The left and right edges of the estimate at the subgraph's node, and those of the node. */
function boxOfEstimate(page) {
  return page.page.evaluate(() => {
    const node = window.subgraphNode;
    const edges = ({ left, right }) => [left, right];
    if (LiteGraph.vueNodesMode) {
      const element = document.querySelector(`[data-node-id="${node.id}"]`);
      return [element.querySelector(".multirate-ras-hint"), element].map((one) => edges(one.getBoundingClientRect()));
    }
    const badges = node.badges.map((one) => (typeof one === "function" ? one() : one));
    const widths = badges.map((one) => one.getWidth(app.canvas.ctx));
    return [[node.size[0] - Math.max(...widths), node.size[0]], [0, node.size[0]]]; // badges are at the right
  });
}
