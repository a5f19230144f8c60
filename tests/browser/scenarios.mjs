// The tests' scenarios in the browser. Run as `node scenarios.mjs JOB` with JOB as JSON; prints a report as JSON.

import { Browser } from "./comfy_page.mjs";
import { estimates } from "./estimates.mjs";
import { focus } from "./focus.mjs";
import { NEW_SEED, prepare } from "./prepare.mjs";
import { twoSamplers } from "./two_samplers.mjs";

const scenarios = { load, run, interrupt, turnedOff, standIns, hinted, leave, downstream, otherNodes, subgraph, blueprint, twoSamplers, estimates, focus };

/** Each workflow in turn: does it load, are all its nodes known, and does none lie on another, even with advanced inputs? */
async function load(browser, { workflows }) {
  const page = await browser.open();
  await page.setting("LiteGraph.Canvas.MinFontSizeForLOD", 0); // show text in the screenshots
  await page.setting("Comfy.Minimap.Visible", false);
  const words = ["ras", "RAS", "multirate", "speed", "fast", "faster", "quick", "accelerate", "cache", "region", "skip", "turbo"];
  const report = { found: await page.until(() => page.search(words), (found) => found.ras.length) };
  for (const [name, file] of Object.entries(workflows)) {
    page.problems.length = 0;
    await page.load(file);
    await page.page.evaluate(() => app.canvas.fitViewToSelectionAnimated?.());
    await page.settle(400);
    const overlaps = await page.until(() => page.overlaps());
    await page.screenshot(`load_${name}`);
    await page.showAdvanced("RASPatchModel");
    const overlapsAdvanced = await page.until(() => page.overlaps());
    const unknown = await page.page.evaluate(() =>
      app.graph.nodes.map((node) => node.type).filter((type) => !(type in LiteGraph.registered_node_types)),
    );
    report[name] = { unknown, overlaps, overlapsAdvanced, problems: [...page.problems] };
  }
  return report;
}

/** A whole run in one client while another one looks on. */
async function run(browser, { workflow, name, sampler }) {
  const [page, other] = [await browser.open(), await browser.open()];
  await prepare(page, workflow, sampler);
  const before = await page.saved(sampler);
  const seen = await page.watchPictures(); // from the start: on a busy machine the page draws once a second
  const queued = await page.queue();
  await page.waitForPanel();
  await page.waitForStep("regional");
  await page.settle(100);
  await page.screenshot(`run_${name}_during`);
  const end = await queued.end();
  const after = await page.finishedPanel();
  const pictures = await seen();
  await page.screenshot(`run_${name}_after`);
  const scrubbed = await scrub(page);
  await page.screenshot(`run_${name}_scrubbed`);
  const shown = await page.allPictures({ RASMaskPreview: 1, SaveImage: 1, PreviewImage: 16 });
  const kept = { shown, saved: await page.saved(sampler), hostPictures: await page.hostPictures(sampler) };
  const returned = await leaveAndReturn(page, workflow);
  return {
    end, before, after, scrubbed, pictures, returned, ...kept,
    isNodes2: await page.page.evaluate(() => Boolean(LiteGraph.vueNodesMode)),
    messages: page.messages,
    otherMessages: other.messages,
    otherPanel: await other.panel(),
    problems: [...page.problems, ...other.problems],
  };
}

/** Opens the same template in another tab, and returns to the first one. */
async function leaveAndReturn(page, workflow) {
  await page.load(workflow);
  const away = await page.until(() => page.panel(), (panel) => panel === null);
  await page.openTab(-2);
  const back = await page.finishedPanel();
  await page.screenshot("returned");
  return { away, back };
}

/** By keyboard alone: to the first step, two on, to the last. */
async function scrub(page) {
  await page.page.locator(".multirate-ras-timeline input").focus();
  const found = [];
  let last = await page.panel();
  for (const keys of [["Home"], ["ArrowRight", "ArrowRight"], ["End"]]) {
    for (const key of keys) await page.page.keyboard.press(key);
    const isRedrawn = (panel) => panel.sliderText !== last.sliderText && panel.picture !== last.picture;
    found.push((last = await page.until(() => page.panel(), isRedrawn)));
  }
  await page.page.keyboard.press("ArrowLeft");
  await page.settle(200);
  return found;
}

async function interrupt(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler, { steps: 100 }); // it must not end before it is interrupted
  const before = await page.saved(sampler);
  const queued = await page.queue();
  await page.waitForPanel();
  await page.waitForStep("regional");
  const during = await page.panel();
  await page.page.evaluate(() => app.api.interrupt());
  const end = await queued.end();
  const isCleared = (panel) => panel === null && page.messages.at(-1).phase !== "step";
  const panel = await page.until(() => page.panel(), isCleared);
  await page.screenshot("interrupted");
  return {
    end, before, during, panel,
    saved: await page.saved(sampler),
    messages: page.messages,
    problems: page.problems,
  };
}

/** With the setting off nothing is sent, and ComfyUI's own preview is there; then on again. */
async function turnedOff(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler, { steps: 8 });
  await page.setting("MultirateRAS.LiveView", false);
  await page.settle(300);
  const end = await (await page.queue()).end();
  const hostPictures = await page.until(() => page.hostPictures(sampler), (count) => count > 0);
  const off = { messages: [...page.messages], panel: await page.panel(), hostPictures };
  await page.setting("MultirateRAS.LiveView", true);
  await page.settle(300);
  await page.set(sampler, { seed: NEW_SEED() });
  await (await page.queue()).end();
  const on = { panel: await page.finishedPanel(), messages: page.messages, hostPictures: await page.hostPictures(sampler) };
  return { end, off, on, problems: page.problems };
}

/** The node goes away while it samples, then the whole workflow does. */
async function leave(browser, { workflow, sampler }) {
  const page = await browser.open();
  const panels = [];
  let second, stepsOfSecond;
  for (const leaving of ["node", "workflow"]) {
    await prepare(page, workflow, sampler, { steps: 100 }); // it must not end before it is interrupted
    const queued = await page.queue();
    await page.waitForPanel();
    if (leaving === "workflow") {
      await page.set(sampler, { seed: NEW_SEED() });
      second = await page.queueLater(); // it starts when the other workflow is open
      await page.load(workflow);
    }
    else {
      await page.page.evaluate((type) => {
        app.graph.remove(app.graph.nodes.find((node) => node.type === type));
      }, sampler);
    }
    const before = page.messages.length;
    await page.until(() => page.messages.length, (count) => count >= before + 2);
    panels.push(await page.panel());
    await page.page.evaluate(() => app.api.interrupt());
    await queued.end();
    if (leaving === "node") continue;
    const steps = () => page.messages.filter(({ phase, prompt_id }) => phase === "step" && prompt_id === second);
    await page.until(() => steps().length, (count) => count >= 2, 60_000);
    panels.push(await page.panel());
    stepsOfSecond = steps().length;
    await page.page.evaluate(() => app.api.interrupt());
  }
  return { panels, stepsOfSecond, problems: page.problems };
}

/** ComfyUI's own KSampler behind RASPatchModel, put together in the page. */
async function downstream(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler);
  await page.page.evaluate((type) => {
    const old = app.graph.nodes.find((node) => node.type === type);
    const [patch, plain] = ["RASPatchModel", "KSampler"].map((one) => LiteGraph.createNode(one));
    plain.pos = [...old.pos];
    patch.pos = [old.pos[0], old.pos[1] - 400];
    app.graph.add(patch);
    app.graph.add(plain);
    const from = (name) => old.getInputNode(old.findInputSlot(name));
    from("model").connect(0, patch, "model");
    patch.connect(0, plain, "model");
    for (const name of ["positive", "negative", "latent_image"]) {
      from(name).connect(old.getInputLink(old.findInputSlot(name)).origin_slot, plain, name);
    }
    for (const name of ["seed", "steps"]) {
      const value = old.widgets.find((one) => one.name === name).value;
      plain.widgets.find((one) => one.name === name).value = value;
    }
    const decode = app.graph.nodes.find((node) => node.type === "VAEDecode");
    app.graph.nodes.filter((node) => node.type === "RASMaskPreview").forEach((node) => app.graph.remove(node));
    app.graph.remove(old);
    plain.connect(0, decode, "samples");
    return plain.id;
  }, sampler);
  await page.centre("KSampler");
  const end = await (await page.queue()).end();
  const panel = await page.finishedPanel();
  await page.screenshot("downstream");
  const seen = { widgets: await page.widgetNames("KSampler"), panel, messages: [...page.messages] };
  const [rows, turnedOff, unpatched, compared] = [await compact(page), await turnOff(page), await unpatch(page), await compare(page)];
  return { end, ...seen, compact: rows, turnedOff, unpatched, compared, problems: page.problems };
}

/** RAS Compare in place of the sampler: its live view, its slider, and what is saved of it. */
async function compare(page) {
  await page.page.evaluate(() => {
    const one = (type) => app.graph.nodes.find((node) => node.type === type);
    const [sampler, model] = [one("KSampler"), one("RASDemoModel")];
    const node = LiteGraph.createNode("RASCompare");
    node.pos = [sampler.pos[0], sampler.pos[1]];
    app.graph.add(node);
    model.connect(0, node, "model");
    model.connect(1, node, "vae");
    for (const name of ["positive", "negative", "latent_image"]) {
      const slot = sampler.findInputSlot(name);
      sampler.getInputNode(slot).connect(sampler.getInputLink(slot).origin_slot, node, name);
    }
    for (const type of ["SaveImage", "PreviewImage", "RASMaskPreview", "VAEDecode", "RASTrace", "RASPatchModel", "KSampler"]) {
      app.graph.nodes.filter((other) => other.type === type).forEach((other) => app.graph.remove(other));
    }
  });
  await page.set("RASCompare", { seed: NEW_SEED(), steps: 16, cfg: 3.5 });
  await page.centre("RASCompare");
  await page.settle(500); // Nodes 2.0 measures a node when it is shown
  const before = await page.until(() => page.saved("RASCompare"));
  const headlines = await page.watchHeadlines();
  const end = await (await page.queue()).end();
  const during = await headlines();
  const shown = page.page.locator(".multirate-ras-compare");
  await shown.waitFor({ timeout: 20_000 });
  await page.centre("RASCompare"); // it has become taller
  await page.settle(500);
  await page.screenshot("compare");
  await shown.locator("button").nth(1).click();
  await shown.locator("input").focus();
  await page.page.keyboard.press("Home");
  const look = () => page.page.evaluate(() => {
    const slider = document.querySelector(".multirate-ras-compare");
    const [before, after] = slider.querySelectorAll("img");
    const { widgets } = app.graph.nodes.find((node) => node.type === "RASCompare");
    return {
      buttons: [...slider.querySelectorAll("button")].map((one) => one.textContent),
      left: slider.querySelector(".multirate-ras-left").textContent,
      right: slider.querySelector(".multirate-ras-right").textContent,
      figures: slider.querySelector(".multirate-ras-figures").textContent,
      clip: after.style.clipPath,
      sizes: [before.naturalWidth, after.naturalWidth],
      shown: [before.clientWidth, before.clientHeight],
      widgets: widgets.map((one) => one.name),
    };
  });
  // The node becomes as large as the images need some time after these are there.
  const found = await page.until(look, ({ sizes, shown }) => Math.min(...sizes) > 0 && Math.min(...shown) > 350);
  const after = { ...found, panel: await page.panel(), hostPictures: await page.hostPictures("RASCompare") };
  const saved = await page.saved("RASCompare");
  const inPanel = await page.widgetsInSidePanel("RASCompare", "denoise");
  await page.settle(300);
  await page.screenshot("compare_selected");
  const { shown: selected } = await page.until(look);
  await page.page.evaluate(() => app.canvas.deselectAll());
  await page.setting("Comfy.RightSidePanel.IsOpen", false);
  return { before, during, end, after, saved, selected, inPanel };
}

/** RAS Patch Model's rows and hint: as added, with speed = custom, and with the advanced inputs shown. */
async function compact(page) {
  const look = async (isTold) => {
    await page.settle(300);
    return page.until(read, ({ hint }) => hint && isTold(hint));
  };
  const isCustom = (hint) => hint.startsWith("custom");
  const read = () =>
    page.page.evaluate(() => {
      const usableIn = (body) => body?.querySelectorAll("input:not(:disabled)").length; // numbers, in Nodes 2.0
      const node = app.graph.nodes.find((one) => one.type === "RASPatchModel");
      const body = document.querySelector(`[data-node-id="${node.id}"]`);
      const inPage = [...(body?.querySelectorAll(".lg-node-widget") ?? [])].map((one) => one.textContent);
      const onCanvas = node.widgets.filter((one) => node.isWidgetVisible(one) && !one.hidden).map((one) => one.name);
      const hint = [...document.querySelectorAll(".multirate-ras-hint")].find((one) => one.textContent);
      return {
        rows: LiteGraph.vueNodesMode ? inPage.filter((text) => text && text !== hint?.textContent).length : onCanvas.length - 1,
        height: node.size[1],
        hint: hint?.textContent,
        isCut: hint && hint.scrollHeight > hint.clientHeight,
        off: node.widgets.filter((one) => one.disabled && one.type !== "multirate_ras_hint").map((one) => one.name),
        usable: usableIn(body),
      };
    });
  const found = { added: await look((hint) => !isCustom(hint)) };
  await page.centre("RASPatchModel");
  await page.screenshot("compact");
  await page.set("RASPatchModel", { speed: "custom" });
  found.custom = await look(isCustom);
  await page.page.evaluate(async () => {
    const nodes = app.graph.serialize();
    await app.loadGraphData(nodes);
  });
  found.loaded = await look(isCustom);
  await page.set("RASPatchModel", { speed: "2x" });
  found.again = await look((hint) => !isCustom(hint));
  return found;
}

/** Prompts of the graph with one of the pack's nodes bypassed or muted, and a run with RAS Patch Model muted. */
async function turnOff(page) {
  const prompts = await page.page.evaluate(async () => {
    const one = (type) => app.graph.nodes.find((node) => node.type === type);
    const [patch, sampler, decode] = ["RASPatchModel", "KSampler", "VAEDecode"].map(one);
    const add = (type) => (app.graph.add(LiteGraph.createNode(type)), app.graph.nodes.at(-1));
    const trace = add("RASTrace");
    patch.connect(0, trace, "model");
    sampler.connect(0, trace, "latent");
    trace.connect(0, decode, "samples");
    const [solver, levels, custom] = ["RASSampler", "RASScheduler", "SamplerCustom"].map(add);
    patch.connect(0, levels, "model");
    patch.connect(0, custom, "model");
    solver.connect(0, custom, "sampler");
    levels.connect(0, custom, "sigmas");
    const found = [];
    for (const mode of [4, 2]) {
      for (const node of [patch, trace, solver, levels]) {
        node.mode = mode;
        const { output } = await app.graphToPrompt();
        const type = ([id]) => output[id]?.class_type;
        found.push({
          off: node.type,
          model: type(output[sampler.id].inputs.model),
          samples: type(output[decode.id].inputs.samples),
          custom: ["model", "sampler", "sigmas"].map((name) => type(output[custom.id].inputs[name] ?? [])),
          levels: type(output[levels.id].inputs.model),
        });
        node.mode = 0;
      }
    }
    [custom, solver, levels].forEach((node) => app.graph.remove(node));
    const shown = add("RASMaskPreview");
    shown.pos = [one("SaveImage").pos[0], one("SaveImage").pos[1] - 300];
    trace.connect(1, shown, "trace");
    patch.mode = 2;
    return found;
  });
  await page.set("KSampler", { seed: NEW_SEED(), steps: 3 });
  await page.centre("SaveImage");
  const end = await (await page.queue()).end();
  const pictures = await page.allPictures({ SaveImage: 1, RASMaskPreview: 1 });
  await page.screenshot("turned_off");
  return { prompts, end, shown: pictures, panel: await page.panel() };
}

/** The live view after another run with RAS Patch Model, and after this node is removed. */
async function unpatch(page) {
  const change = (act) =>
    page.page.evaluate((act) => {
      const patch = app.graph.nodes.find((node) => node.type === "RASPatchModel");
      if (act === "remove") app.graph.remove(patch);
      else patch.mode = 0;
    }, act);
  await change("turn on");
  await page.set("KSampler", { seed: NEW_SEED() });
  await page.centre("KSampler");
  await (await page.queue()).end();
  const before = await page.finishedPanel();
  await change("remove");
  return { before, after: await page.until(() => page.panel(), (panel) => panel === null) };
}

/** Prompts and runs of graphs in which nodes that sample are bypassed or muted. */
async function standIns(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler, { steps: 3, size: 128 });
  const prompts = await page.page.evaluate(async () => {
    const one = (type) => app.graph.nodes.find((node) => node.type === type);
    const add = (type) => (app.graph.add(LiteGraph.createNode(type)), app.graph.nodes.at(-1));
    const [first, decode, save] = ["RASKSampler", "VAEDecode", "SaveImage"].map(one);
    const copyInputs = (node) => {
      for (const name of ["model", "positive", "negative", "latent_image"]) {
        const slot = first.findInputSlot(name);
        const { origin_slot } = app.graph.getLink?.(first.inputs[slot].link) ?? app.graph.links[first.inputs[slot].link];
        first.getInputNode(slot).connect(origin_slot, node, name);
      }
    };
    /** The classes of the nodes before an input, from the nearest on along the inputs that images come through. */
    const chain = async (node, name) => {
      const { output } = await app.graphToPrompt();
      const found = [];
      for (let [id] = output[node.id].inputs[name] ?? []; output[id]; ) {
        found.push(output[id].class_type);
        const { samples, latent_image } = output[id].inputs;
        [id] = samples ?? latent_image ?? [];
      }
      return found;
    };
    const off = async (node, mode, from, name) => {
      node.mode = mode;
      const found = await chain(from, name);
      node.mode = 0;
      return found;
    };
    const found = {};
    found.muted = await off(first, 2, decode, "samples");
    found.bypassed = await off(first, 4, decode, "samples");

    const second = add("RASKSampler");
    copyInputs(second);
    first.connect(0, second, "latent_image");
    second.connect(0, decode, "samples");
    found.secondBypassed = await off(second, 4, decode, "samples");
    found.secondMuted = await off(second, 2, decode, "samples");
    first.connect(0, decode, "samples");
    [second, decode].forEach((node) => (node.mode = 2));
    found.branch = Object.values((await app.graphToPrompt()).output).filter((node) => node.class_type === "KSampler");
    decode.mode = 0;
    app.graph.remove(second);

    const compare = add("RASCompare");
    copyInputs(compare);
    decode.getInputNode(1).connect(1, compare, "vae");
    compare.connect(1, save, "images");
    found.compareMuted = await off(compare, 2, save, "images");
    found.compareBypassed = await off(compare, 4, save, "images");
    decode.connect(0, save, "images");
    app.graph.remove(compare);

    const [patch, lora, reroute] = ["RASPatchModel", "LoraLoaderModelOnly", "Reroute"].map(add);
    first.getInputNode(first.findInputSlot("model")).connect(0, reroute, 0);
    reroute.connect(0, lora, "model");
    lora.connect(0, patch, "model");
    patch.connect(0, first, "model");
    [patch.mode, lora.mode] = [2, 4];
    const { output } = await app.graphToPrompt();
    found.model = output[output[first.id].inputs.model?.[0]]?.class_type;
    first.mode = 2;
    window.subgraphNode = app.graph.convertToSubgraph(new Set([first])).node;
    found.inside = await chain(decode, "samples");
    return found;
  });
  const end = await (await page.queue()).end();
  const shown = await page.allPictures({ SaveImage: 1 });
  await page.screenshot("stand_ins");
  return { prompts, end, shown, problems: page.problems };
}

/** The hint's text with the graph as it is, at another size, with RAS Calibrate connected, and inside a subgraph whose
 * node sets the speed. */
async function hinted(browser, { workflow, sampler }) {
  const page = await browser.open();
  await page.load(workflow);
  await page.set(sampler, { speed: "2x" });
  const read = () =>
    page.page.evaluate(() =>
      [...document.querySelectorAll(".multirate-ras-hint")].map((one) => [one.textContent, one.title]).find(([told]) => told),
    );
  const isMeasured = (hint) => hint?.[0].includes("measured");
  const found = { saved: await page.until(read, isMeasured) }; // until the server answers, the family's plan is told
  await page.screenshot("hint_measured");
  const [width] = await page.page.evaluate(() =>
    app.graph.nodes.find((one) => one.type === "EmptySD3LatentImage").widgets.map(({ value }) => value),
  );
  await page.set("EmptySD3LatentImage", { width: width + 128 });
  await page.set(sampler, { speed: "2x" });
  found.otherSize = await page.until(read, (hint) => hint && !isMeasured(hint));
  await page.page.evaluate((sampler) => {
    const one = (type) => app.graph.nodes.find((node) => node.type === type);
    const node = one(sampler);
    app.graph.add(LiteGraph.createNode("RASCalibrate"));
    app.graph.add(LiteGraph.createNode("RASPatchModel"));
    one("RASDemoModel").connect(0, one("RASPatchModel"), "model");
    one("RASPatchModel").connect(0, one("RASCalibrate"), "model");
    one("EmptySD3LatentImage").connect(0, one("RASCalibrate"), "latent_image");
    one("RASCalibrate").connect(0, node, "plan");
    for (const hint of document.querySelectorAll(".multirate-ras-hint")) hint.textContent = "";
    one("RASPatchModel").widgets.find(({ name }) => name === "speed").value = "3x";
  }, sampler);
  await page.set(sampler, { speed: "2x" });
  const ofSampler = () =>
    page.page.evaluate((sampler) => {
      const node = app.graph.nodes.find((one) => one.type === sampler) ?? window.subgraphNode.subgraph.nodes[0];
      return node.widgets.find(({ name }) => name === "multirate_ras_hint").element.textContent;
    }, sampler);
  found.notCalibrated = await page.until(ofSampler, Boolean);
  await page.page.evaluate((sampler) => {
    const one = (type) => app.graph.nodes.find((node) => node.type === type);
    const [mask, node] = [LiteGraph.createNode("SetLatentNoiseMask"), one(sampler)];
    app.graph.add(mask);
    one("EmptySD3LatentImage").connect(0, mask, "samples");
    mask.connect(0, node, "latent_image");
    node.disconnectInput(node.findInputSlot("plan"));
  }, sampler);
  await page.set(sampler, { speed: "2x" });
  found.inpainting = await page.until(ofSampler, (told) => told && told !== found.notCalibrated);
  await page.page.evaluate((sampler) => {
    const one = (type) => app.graph.nodes.find((node) => node.type === type);
    one("EmptySD3LatentImage").connect(0, one(sampler), "latent_image");
    one("RASCalibrate").connect(0, one(sampler), "plan");
  }, sampler);
  await page.set("EmptySD3LatentImage", { width });
  await page.set(sampler, { speed: "2x" });
  found.connected = await page.until(ofSampler, (told) => told && ![found.notCalibrated, found.inpainting].includes(told));
  await page.page.evaluate((sampler) => {
    const node = app.graph.nodes.find((one) => one.type === sampler);
    node.disconnectInput(node.findInputSlot("plan"));
    window.subgraphNode = app.graph.convertToSubgraph(new Set([node])).node;
    const speed = window.subgraphNode.subgraph.nodes[0].widgets.find(({ name }) => name === "speed");
    speed.callback?.(speed.value);
  }, sampler);
  await page.settle(500); // the text before may be the same
  found.inside = await page.until(ofSampler, Boolean);
  await page.page.evaluate(() => {
    const { subgraph } = window.subgraphNode;
    const [node] = subgraph.nodes;
    subgraph.addInput("speed", "COMBO").connect(node.inputs[node.findInputSlot("speed")], node);
    window.subgraphNode.widgets.find(({ name }) => name === "speed").value = "3x";
    app.canvas.setGraph(subgraph);
  });
  found.promoted = await page.until(ofSampler, (told) => told !== found.inside);
  found.unused = await promotedInputs(page);
  found.outside = await page.until(() => page.estimateOutside(), Boolean);
  const setMode = (mode) => page.page.evaluate((mode) => (window.subgraphNode.subgraph.nodes[0].mode = mode), mode);
  found.off = [];
  for (const mode of [2, 4]) {
    await setMode(mode);
    await page.page.evaluate(() => app.api.dispatchCustomEvent("graphChanged"));
    found.off.push(await page.until(ofSampler, (told) => !told));
    await setMode(0);
    await page.page.evaluate(() => app.api.dispatchCustomEvent("graphChanged"));
    found.on = await page.until(ofSampler, Boolean);
  }
  return { ...found, problems: page.problems };
}

/** Whether an input of custom settings is greyed out in a subgraph's node that shows it: at a speed, and at custom. */
async function promotedInputs(page) {
  await page.page.evaluate(() => {
    const { subgraph } = window.subgraphNode;
    const [node] = subgraph.nodes;
    subgraph.addInput("kv_cache", "COMBO").connect(node.inputs[node.findInputSlot("kv_cache")], node);
  });
  const isOff = () =>
    page.page.evaluate(() => Boolean(window.subgraphNode.widgets.find(({ name }) => name === "kv_cache").disabled));
  const found = [];
  for (const speed of ["3x", "custom", "3x"]) {
    await page.setPromoted({ speed });
    found.push(await page.until(isOff, (off) => off === (speed !== "custom")));
  }
  return found;
}

/** The user changes to the other kind of nodes in an open page; later, to other speeds. */
async function otherNodes(browser, { workflow, sampler }) {
  const page = await browser.open();
  await page.setting("Comfy.Execution.PreviewMethod", "none"); // as on a fresh ComfyUI
  const isNodes2 = await page.page.evaluate(() => LiteGraph.vueNodesMode);
  await page.setting("Comfy.VueNodes.Enabled", !isNodes2);
  await prepare(page, workflow, sampler);
  await page.narrow(sampler);
  const before = await page.until(() => page.saved(sampler));
  const end = await (await page.queue()).end();
  const panel = await page.finishedPanel();
  await page.screenshot("other_nodes");
  await page.set(sampler, { seed: NEW_SEED(), steps: 2 }); // too few for a regional step
  await (await page.queue()).end();
  const isOfThisRun = (one) => one?.isOver && one.headline !== panel?.headline;
  const short = await page.until(() => page.panel(), isOfThisRun);
  const saved = await page.saved(sampler);
  await page.screenshot("not_accelerated");
  for (const speed of ["2x", "custom", "2x"]) {
    await page.set(sampler, { speed });
    await page.settle(300);
  }
  const bands = await page.until(() => page.emptyBands());
  await page.screenshot("speed_changed");
  await page.setting("Comfy.Execution.PreviewMethod", "default");
  return { end, panel, short, before, saved, bands, messages: page.messages, problems: page.problems };
}

/** The sampler inside a subgraph: nothing breaks, inside it the view is there, and outside it is there again. */
async function subgraph(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler);
  await page.page.evaluate((type) => {
    const node = app.graph.nodes.find((one) => one.type === type);
    window.subgraphNode = app.graph.convertToSubgraph(new Set([node])).node;
  }, sampler);
  await page.settle();
  const [before, heightBefore] = [await page.savedSubgraph(), await page.heightOfSubgraph()];
  const end = await (await page.queue()).end();
  const outside = await page.finishedPanel();
  await page.screenshot("subgraph_outside");
  const [nested, place] = [await page.savedSubgraph(), await page.until(() => page.panelInSubgraph())];
  await page.page.evaluate(() => app.canvas.setGraph(window.subgraphNode.subgraph));
  await page.centre(sampler);
  const inside = await page.until(() => page.panel(), Boolean);
  await page.settle(300);
  await page.screenshot("subgraph_inside");
  await page.page.evaluate(() => {
    app.canvas.setGraph(app.graph);
    app.canvas.centerOnNode(window.subgraphNode);
  });
  const back = await page.until(() => page.shownPanels(), (widths) => widths.length > 0);
  await page.screenshot("subgraph_back");
  const offered = await page.offeredWidgets();
  const placeBack = await page.until(() => page.panelInSubgraph());
  await page.screenshot("subgraph_list");
  const height = await page.heightOfSubgraph();
  await page.page.evaluate(() => {
    const { subgraph } = window.subgraphNode;
    const [node] = subgraph.nodes;
    app.canvas.setGraph(subgraph);
    subgraph.addInput("speed", "COMBO").connect(node.inputs[node.findInputSlot("speed")], node); // shown outside
    app.canvas.setGraph(app.graph);
  });
  await page.settle(500);
  await page.page.evaluate(() => (window.subgraphNode.subgraph.nodes[0].mode = 4)); // bypassed
  const endWithout = await (await page.queue()).end();
  await page.until(() => page.shownPanels(), (widths) => widths.length === 0);
  await page.settle(500);
  await page.screenshot("subgraph_without");
  const heights = [heightBefore, height, await page.heightOfSubgraph()];
  const ends = [end, endWithout];
  return { ends, outside, inside, back, offered, placeBack, before, nested, place, heights, messages: page.messages, problems: page.problems };
}

/** What a subgraph's node says while its speed is custom, and what its sampler then shows; the same at 3x. */
async function promotedCustom(page, sampler) {
  const found = {};
  for (const speed of ["custom", "3x"]) {
    const isTold = (text) => text.startsWith("custom") === (speed === "custom") && text;
    await page.setPromoted({ speed });
    const outside = await page.until(() => page.estimateOutside(), isTold);
    await page.page.evaluate(() => app.canvas.setGraph(window.subgraphNode.subgraph));
    await page.centre(sampler);
    const rows = await page.until(() => page.advancedRows(sampler), (names) => names.length === (speed === "custom" ? 6 : 0));
    await page.screenshot(`promoted_${speed}`);
    await page.page.evaluate(() => app.canvas.setGraph(app.graph));
    await page.settle();
    found[speed] = { outside, rows };
  }
  found.atOnce = await openedAtOnce(page, sampler);
  return found;
}

/** The advanced inputs that show if the subgraph is opened before the pack has looked at its node's new speed. */
async function openedAtOnce(page, sampler) {
  await page.setPromoted({ speed: "custom" }, true);
  await page.centre(sampler);
  const rows = await page.until(() => page.advancedRows(sampler), (names) => names.length === 6, 5_000);
  await page.page.evaluate(() => app.canvas.setGraph(app.graph));
  await page.setPromoted({ speed: "3x" });
  await page.until(() => page.estimateOutside(), (text) => !text.startsWith("custom"));
  return rows;
}

/** The live view of the last run, if it had been slower than planned, in a subgraph's node of the least width. */
async function narrowWarning(page) {
  const end = page.messages.findLast(({ phase }) => phase === "end");
  const plan = "2x: 17 steps instead of 28, 5 dense, 82 % of tokens";
  const reason = "perhaps the computer was busy, or the image is small";
  await page.page.evaluate((message) => {
    const node = window.subgraphNode;
    node.setSize([225, node.size[1]]);
    app.api.dispatchCustomEvent("multirate_ras.live", message);
    app.canvas.centerOnNode(node);
    app.canvas.setDirty(true, true);
  }, { ...end, plan, reason, speedup: 1.55, busy: false, accelerated: true });
  await page.settle(500);
  const panel = await page.until(() => page.panel(), (found) => found?.headline.includes("planned"));
  const place = await page.until(() => page.panelInSubgraph(), (found) => Math.min(...found) > -1);
  await page.screenshot("narrow_warning");
  return { panel, place };
}

/** The blueprint as the node library adds it, in the place of an example's own sampler, decoder and preview. */
async function blueprint(browser, { workflow, sampler, blueprint }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler);
  const added = await page.addBlueprint(blueprint);
  await page.settle(2500); // longer than the page takes to look at the graph and to ask the server
  const unconnected = await page.estimateOutside();
  await page.page.evaluate((type) => {
    const node = window.subgraphNode;
    const one = (type) => app.graph.nodes.find((other) => other.type === type);
    const [old, decode, shown] = [one(type), one("VAEDecode"), one("RASMaskPreview")];
    for (const name of ["model", "positive", "negative", "latent_image"]) {
      const slot = old.findInputSlot(name);
      old.getInputNode(slot).connect(old.getInputLink(slot).origin_slot, node, name);
    }
    decode.getInputNode(1).connect(1, node, "vae");
    node.connect(0, one("SaveImage"), "images");
    node.connect(1, one("PreviewImage"), "images");
    node.pos = [...old.pos];
    [old, decode, shown].forEach((other) => app.graph.remove(other));
  }, sampler);
  const custom = await promotedCustom(page, sampler);
  await page.setPromoted({ seed: NEW_SEED(), steps: 9, speed: "2x" });
  const estimate = await page.until(() => page.estimateOutside(), (told) => told.endsWith(" 9"));
  const { inputs } = await page.savedSubgraph();
  const end = await (await page.queue()).end();
  const shown = await page.allPictures({ SaveImage: 1, PreviewImage: 1 });
  await page.screenshot("blueprint");
  const warned = await narrowWarning(page);
  return { added, unconnected, custom, estimate, inputs, end, shown, warned, problems: page.problems };
}

const job = JSON.parse(process.argv[2]);
const browser = await Browser.launch(job);
try {
  process.stdout.write(JSON.stringify(await scenarios[job.scenario](browser, job)));
} finally {
  await browser.close();
}
