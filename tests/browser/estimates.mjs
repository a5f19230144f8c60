// What RAS Patch Model tells before a run, of samplers in subgraphs and of nodes with settings of their own.

import { NEW_SEED, prepare } from "./prepare.mjs";

/** RAS Patch Model before a subgraph's node whose subgraph contains two samplers in another one; then RAS Compare. */
export async function estimates(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler, { size: 128 });
  await page.page.evaluate(build, sampler);
  const found = { inside: await page.until(() => told(page), ([text]) => / 20( |$)/m.test(text)) };
  await page.screenshot("estimate_inside");
  await setSteps(page, [20, 6]);
  found.few = await page.until(() => told(page), ([text]) => text.includes("no gain"));
  await page.screenshot("estimate_few");
  await setSteps(page, [6, 6]);
  found.bothFew = await page.until(() => told(page), ([text]) => !text.includes("%"));
  await page.page.evaluate(mask);
  await setSteps(page, [20, 20]);
  found.mask = await page.until(() => told(page), (texts) => texts.join().includes("inpainting"));
  await page.screenshot("estimate_mask");
  await page.page.evaluate(compare);
  await page.set("RASCompare", { seed: NEW_SEED(), steps: 9, speed: "2x" });
  found.replaced = await page.until(() => told(page), ([text]) => text.includes("no effect"));
  await page.screenshot("estimate_replaced");
  found.end = await (await page.queue()).end();
  found.unknown = await withoutSampler(page);
  return { ...found, problems: page.problems };
}

/** In the page: puts RAS Patch Model, a reroute, and two samplers in nested subgraphs in the place of the given one. */
function build(type) {
  const old = app.graph.nodes.find((node) => node.type === type);
  const kinds = ["RASPatchModel", "Reroute", "KSampler", "KSampler"];
  const [patch, reroute, first, second] = kinds.map((one) => LiteGraph.createNode(one));
  const from = (name) => old.getInputNode(old.findInputSlot(name));
  window.prompts = ["positive", "negative"].map((name) => [from(name), old.getInputLink(old.findInputSlot(name)).origin_slot]);
  [patch, reroute, first, second].forEach((node, i) => {
    node.pos = [old.pos[0] + 300 * i, old.pos[1]];
    app.graph.add(node);
  });
  from("model").connect(0, patch, "model");
  patch.connect(0, reroute, 0);
  for (const node of [first, second]) {
    reroute.connect(0, node, "model");
    window.prompts.forEach(([origin, slot], i) => origin.connect(slot, node, ["positive", "negative"][i]));
    node.widgets.find((one) => one.name === "steps").value = 20;
  }
  patch.widgets.find((one) => one.name === "speed").value = "2x";
  from("latent_image").connect(0, first, "latent_image");
  first.connect(0, second, "latent_image");
  second.connect(0, app.graph.nodes.find((node) => node.type === "VAEDecode"), "samples");
  app.graph.nodes.filter((node) => node.type === "RASMaskPreview").forEach((node) => app.graph.remove(node));
  app.graph.remove(old);
  const inner = app.graph.convertToSubgraph(new Set([first, second])).node;
  window.samplers = inner.subgraph.nodes.filter((node) => node.type === "KSampler");
  window.subgraphNode = app.graph.convertToSubgraph(new Set([reroute, inner])).node;
  app.canvas.centerOnNode(patch);
}

/** In the page: a mask for the first sampler's latent. */
function mask() {
  const one = (type) => app.graph.nodes.find((node) => node.type === type);
  const node = LiteGraph.createNode("SetLatentNoiseMask");
  app.graph.add(node);
  const slot = window.subgraphNode.inputs.findIndex(({ type }) => type === "LATENT");
  one("EmptySD3LatentImage").connect(0, node, "samples");
  node.connect(0, window.subgraphNode, slot);
}

/** In the page: RAS Compare, behind a reroute, in the place of the samplers. */
function compare() {
  const one = (type) => app.graph.nodes.find((node) => node.type === type);
  const node = LiteGraph.createNode("RASCompare");
  node.pos = [...window.subgraphNode.pos];
  app.graph.add(node);
  const reroute = LiteGraph.createNode("Reroute");
  app.graph.add(reroute);
  one("RASPatchModel").connect(0, reroute, 0);
  reroute.connect(0, node, "model");
  one("RASDemoModel").connect(1, node, "vae");
  one("EmptySD3LatentImage").connect(0, node, "latent_image");
  window.prompts.forEach(([origin, slot], i) => origin.connect(slot, node, ["positive", "negative"][i]));
  node.connect(1, one("SaveImage"), "images");
  for (const type of ["PreviewImage", "VAEDecode", "SetLatentNoiseMask"]) {
    app.graph.nodes.filter((other) => other.type === type).forEach((other) => app.graph.remove(other));
  }
  app.graph.remove(window.subgraphNode);
}

async function withoutSampler(page) {
  await page.page.evaluate(() => app.graph.remove(app.graph.nodes.find((node) => node.type === "RASCompare")));
  return page.until(() => told(page), ([text]) => text.includes("%"));
}

function setSteps(page, steps) {
  return page.page.evaluate((steps) => {
    window.samplers.forEach((node, i) => (node.widgets.find((one) => one.name === "steps").value = steps[i]));
  }, steps);
}

/** The line that the user sees in RAS Patch Model, and its tooltip. */
function told(page) {
  return page.page.evaluate(() => {
    const patch = app.graph.nodes.find((node) => node.type === "RASPatchModel");
    const { element } = patch.widgets.find((one) => one.name === "multirate_ras_hint");
    const isCut = element.scrollHeight > element.clientHeight;
    if (isCut) throw new Error(`cut off: ${element.textContent}`);
    return element.checkVisibility() ? [element.textContent, element.title] : ["", ""];
  });
}
