// A real ComfyUI page in a headless Chromium, with the actions that the scenarios need.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"];
const READY = 90_000;

/** @param job `playwright` (folder with node_modules), `chromium`, `url`, `output` */
export class Browser {
  static async launch(job) {
    const { chromium } = createRequire(path.join(job.playwright, "index.js"))("playwright-core");
    const browser = await chromium.launch({ executablePath: job.chromium, args: FLAGS });
    return new Browser(browser, job);
  }

  constructor(browser, job) {
    Object.assign(this, { browser, job });
  }

  /** A client of its own: other cookies, other storage, other web socket. */
  async open(options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1500, height: 950 }, ...options });
    // Requests to other machines are blocked.
    await context.route(
      (url) => url.hostname !== "127.0.0.1",
      (route) => route.abort(),
    );
    const page = new ComfyPage(await context.newPage(), this.job);
    await page.goto();
    return page;
  }

  close() {
    return this.browser.close();
  }
}

export class ComfyPage {
  constructor(page, job) {
    Object.assign(this, { page, job, problems: [], messages: [] });
    page.on("pageerror", (error) => this.problems.push(String(error.stack ?? error)));
    page.on("console", (message) => {
      if (message.type() === "error") this.problems.push(`${message.text()} (${message.location().url})`);
    });
    // The WebSocket frames from the server, whatever the page does with them.
    page.on("websocket", (socket) =>
      socket.on("framereceived", ({ payload }) => {
        if (typeof payload !== "string") return;
        const { type, data } = JSON.parse(payload);
        if (type === "multirate_ras.live") this.messages.push({ type, ...data });
      }),
    );
  }

  async goto() {
    await this.page.goto(this.job.url);
    await this.page.waitForFunction(() => window.app?.extensionManager, null, { timeout: READY });
    await this.page.locator('[data-testid="queue-button"]').waitFor({ timeout: READY });
    await this.setting("Comfy.RightSidePanel.IsOpen", false); // as an earlier scenario may have left it
  }

  async load(file) {
    const workflow = JSON.parse(readFileSync(file, "utf8"));
    await this.page.evaluate(async (graph) => {
      await app.loadGraphData(graph);
      app.canvas.ds.scale = 0.75;
    }, workflow);
    await this.settle();
  }

  /** Switches to an open workflow, counted from the last (-1). */
  async openTab(index) {
    await this.page.locator(".workflow-tab").nth(index).click();
    await this.settle(500);
  }

  /** Sets widgets of all nodes of a type. */
  set(type, values) {
    return this.page.evaluate(
      ([type, values]) => {
        for (const node of app.graph.nodes.filter((one) => one.type === type)) {
          for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find((one) => one.name === name);
            if (!widget) throw new Error(`${type} has no widget ${name}`);
            widget.value = value;
            widget.callback?.(value);
          }
        }
      },
      [type, values],
    );
  }

  /** Queues the graph; the answer's `end` is awaited for the name of the event that ended the run. */
  async queue() {
    await this.page.evaluate(() => {
      window.runEnd = new Promise((done) => {
        for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
          app.api.addEventListener(name, () => done(name), { once: true });
        }
      });
    });
    await this.page.evaluate(() => app.queuePrompt(0, 1));
    return { end: () => this.page.evaluate(() => window.runEnd) };
  }

  /** Queues the graph, and returns the id of the prompt. */
  async queueLater() {
    const [response] = await Promise.all([
      this.page.waitForResponse((one) => one.url().endsWith("/prompt") && one.request().method() === "POST"),
      this.page.evaluate(() => app.queuePrompt(0, 1)),
    ]);
    return (await response.json()).prompt_id;
  }

  /** What the live view shows, or null. */
  panel() {
    return this.page.evaluate(() => {
      const panel = document.querySelector(".multirate-ras-live");
      if (!panel) return null;
      const canvas = panel.querySelector("canvas");
      const slider = panel.querySelector("input");
      const texts = [...panel.querySelectorAll(".multirate-ras-caption, .multirate-ras-headline")];
      return {
        areCut: texts.some((one) => one.scrollHeight > one.clientHeight || one.scrollWidth > one.clientWidth),
        areExplained: texts.every((one) => one.title.length >= one.textContent.length),
        caption: panel.querySelector(".multirate-ras-caption").textContent,
        headline: panel.querySelector(".multirate-ras-headline").textContent,
        label: canvas.getAttribute("aria-label"),
        picture: canvas.toDataURL().slice(-400),
        colours: new Set(new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size,
        isOver: !slider.disabled,
        sliderText: slider.getAttribute("aria-valuetext"),
        sliderMax: Number(slider.max),
        size: [panel.clientWidth, panel.clientHeight],
      };
    });
  }

  /** How many live views the user sees, in how many pixels' width. */
  shownPanels() {
    return this.page.evaluate(() => {
      const panels = [...document.querySelectorAll(".multirate-ras-live")].filter((one) => one.checkVisibility());
      return panels.map((one) => Math.round(one.getBoundingClientRect().width));
    });
  }

  /** Empty pixels in a node: from the hint to the live view's image, and from there to its caption. */
  emptyBands() {
    return this.page.evaluate(() => {
      const box = (name) => document.querySelector(name).getBoundingClientRect();
      const canvas = document.querySelector(".multirate-ras-live > canvas");
      const [image, scale] = [box(".multirate-ras-live > canvas"), app.canvas.ds.scale];
      const hint = [...document.querySelectorAll(".multirate-ras-hint")].find((one) => one.textContent);
      const around = (image.height - (image.width * canvas.height) / canvas.width) / 2; // as it is in the middle
      const above = image.top + around - hint.getBoundingClientRect().bottom;
      const below = box(".multirate-ras-caption").top - image.bottom + around;
      return [above / scale, below / scale];
    });
  }

  waitForPanel(timeout = 60_000) {
    return this.page.locator(".multirate-ras-live").first().waitFor({ state: "visible", timeout });
  }

  /** Waits until the live view tells of a step of this kind. */
  waitForStep(kind) {
    return this.page.waitForFunction(
      (kind) => document.querySelector(".multirate-ras-caption")?.textContent.includes(kind),
      kind,
      { timeout: 60_000 },
    );
  }

  /** Start collecting the headlines of the live view; call the returned function to stop and get them. */
  async watchHeadlines() {
    await this.page.evaluate(() => {
      window.headlines = new Set();
      const look = () => {
        for (const one of document.querySelectorAll(".multirate-ras-headline")) window.headlines.add(one.textContent);
      };
      window.observer = new MutationObserver(look);
      window.observer.observe(document.body, { childList: true, characterData: true, subtree: true });
    });
    return () => this.page.evaluate(() => (window.observer.disconnect(), [...window.headlines]));
  }

  /** Start counting the different images that the live view draws; call the returned function to stop and get the count. */
  async watchPictures() {
    await this.page.evaluate(() => {
      window.pictures = new Set();
      const look = () => {
        const canvas = document.querySelector(".multirate-ras-live > canvas");
        if (canvas) window.pictures.add(canvas.toDataURL());
      };
      let last = "";
      const lookAtStep = () => {
        const caption = document.querySelector(".multirate-ras-caption")?.textContent ?? "";
        if (caption !== last) look(); // not at each change of the page: that would be thousands
        last = caption;
      };
      const observer = new MutationObserver(lookAtStep); // a timer is late on a busy page
      observer.observe(document.body, { childList: true, characterData: true, subtree: true });
      const timer = setInterval(look, 100);
      window.stopWatching = () => (observer.disconnect(), clearInterval(timer), window.pictures.size);
    });
    return () => this.page.evaluate(() => window.stopWatching());
  }

  /** What of a node goes into a saved workflow and into a prompt, and how large it is. */
  saved(type) {
    return this.page.evaluate(async (type) => {
      const node = app.graph.nodes.find((one) => one.type === type);
      const { output } = await app.graphToPrompt();
      // A node's id is a string; in a saved workflow it may be a number.
      const saved = app.graph.serialize().nodes.find((one) => String(one.id) === String(node.id));
      return {
        widgets: saved.widgets_values.length,
        height: saved.size[1],
        inputs: Object.keys(output[node.id].inputs).sort(),
        size: [...node.size],
      };
    }, type);
  }

  /** The same of a subgraph's node in `window.subgraphNode`, size aside. */
  savedSubgraph() {
    return this.page.evaluate(async () => {
      const { size, order, ...node } = window.subgraphNode.serialize();
      return { node, inputs: (await app.graphToPrompt()).output };
    });
  }

  /** The height of `window.subgraphNode` on the page, in pixels of the graph. */
  heightOfSubgraph() {
    return this.page.evaluate(() => {
      const node = window.subgraphNode;
      if (!LiteGraph.vueNodesMode) return node.size[1];
      const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
      return box.height / app.canvas.ds.scale;
    });
  }

  /** Where the live view is in `window.subgraphNode`: pixels below its last slot, and above its lower edge. */
  panelInSubgraph() {
    return this.page.evaluate(() => {
      const node = window.subgraphNode;
      const panel = document.querySelector(".multirate-ras-live").getBoundingClientRect();
      if (LiteGraph.vueNodesMode) {
        const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
        return [panel.top - box.top, box.bottom - panel.bottom];
      }
      const { scale, offset } = app.canvas.ds;
      const top = app.canvas.canvas.getBoundingClientRect().top + (node.pos[1] + offset[1]) * scale;
      const last = Math.max(...node.widgets.map((one) => one.y)) + LiteGraph.NODE_WIDGET_HEIGHT;
      return [panel.top - top - last * scale, top + node.size[1] * scale - panel.bottom];
    });
  }

  /** Adds a listed blueprint by the front end's own functions, as `window.subgraphNode`; what it then is. */
  addBlueprint(name) {
    return this.page.evaluate((name) => {
      const { $pinia } = document.querySelector("#vue-app").__vue_app__.config.globalProperties;
      const store = $pinia._s.get("subgraph");
      const listed = store.subgraphBlueprints.filter((one) => one.display_name === name);
      if (listed.length !== 1) throw new Error(`${listed.length} blueprints are called ${name}`);
      const [{ name: id, category, description }] = listed;
      const { nodes, definitions } = store.getBlueprint(id);
      const items = app.canvas._deserializeItems({ nodes, subgraphs: definitions.subgraphs }, { position: [0, 0] });
      const node = (window.subgraphNode = [...items.nodes.values()][0]);
      const types = node.subgraph.nodes.map((one) => one.type);
      return {
        id, category, description, types,
        unknown: types.filter((type) => !(type in LiteGraph.registered_node_types)),
        inputs: node.inputs.map((one) => one.name),
        outputs: node.outputs.map((one) => one.name),
        widgets: node.widgets.map((one) => one.name),
      };
    }, name);
  }

  /** The estimate at `window.subgraphNode`: a badge in the classic canvas, a line in Nodes 2.0. */
  estimateOutside() {
    return this.page.evaluate(() => {
      const { badges, id } = window.subgraphNode;
      const line = document.querySelector(`[data-node-id="${id}"] .multirate-ras-hint`);
      const texts = badges.map((one) => (typeof one === "function" ? one() : one).text);
      return LiteGraph.vueNodesMode ? line?.textContent ?? "" : texts.find(Boolean) ?? "";
    });
  }

  /** Sets widgets that `window.subgraphNode` shows for the nodes inside; with `opens`, opens its subgraph at once. */
  setPromoted(values, opens = false) {
    return this.page.evaluate(([values, opens]) => {
      for (const [name, value] of Object.entries(values)) {
        window.subgraphNode.widgets.find((one) => one.name === name).value = value;
      }
      if (opens) app.canvas.setGraph(window.subgraphNode.subgraph);
    }, [values, opens]);
  }

  /** What the search for nodes finds: word -> the first types. ComfyUI has several blueprints for "turbo" models. */
  search(words) {
    return this.page.evaluate((words) => {
      const { $pinia } = document.querySelector("#vue-app").__vue_app__.config.globalProperties;
      const service = $pinia._s.get("nodeDef").nodeSearchService;
      const types = (word) => service.searchNode(word).slice(0, 30).map((one) => one.name);
      return Object.fromEntries(words.map((word) => [word, types(word)]));
    }, words);
  }

  widgetNames(type) {
    return this.page.evaluate(
      (type) => app.graph.nodes.find((one) => one.type === type).widgets.map((one) => one.name),
      type,
    );
  }

  /** Number of images that ComfyUI itself shows in a node. */
  async hostPictures(type) {
    return (await this.shownPictures())[type] ?? 0;
  }

  /** Number of images that ComfyUI itself shows in each node that has some: node type -> count. */
  shownPictures() {
    return this.page.evaluate(() => {
      const inPage = (node) => document.querySelectorAll(`[data-node-id="${node.id}"] img:not(.multirate-ras-compare img)`);
      const shown = (node) => (LiteGraph.vueNodesMode ? inPage(node) : node.imgs)?.length ?? 0;
      const counts = app.graph.nodes.map((node) => [node.type, shown(node)]);
      return Object.fromEntries(counts.filter(([, count]) => count > 0));
    });
  }

  /** Shows the advanced inputs of nodes of a type, as the user does. */
  async showAdvanced(type) {
    const ids = await this.page.evaluate((type) => {
      const nodes = app.graph.nodes.filter((one) => one.type === type);
      if (!LiteGraph.vueNodesMode) nodes.forEach((node) => node.toggleAdvanced());
      return LiteGraph.vueNodesMode ? nodes.map(({ id }) => id) : [];
    }, type);
    for (const id of ids) await this.page.locator(`[data-node-id="${id}"] button`, { hasText: "advanced" }).click();
    await this.settle(300);
  }

  /** Titles of nodes that lie on each other, in pairs; sizes are those after loading. */
  overlaps() {
    return this.page.evaluate(() => {
      const boxes = app.graph.nodes.map((node) => ({ title: node.title, box: [...node.getBounding()] }));
      const apart = ([x, y, w, h], [u, v, s, t]) => x + w <= u || u + s <= x || y + h <= v || v + t <= y;
      return boxes.flatMap((one, i) =>
        boxes.slice(i + 1).filter((two) => !apart(one.box, two.box)).map((two) => [one.title, two.title]),
      );
    });
  }

  /** The advanced inputs that a node in the open graph shows. */
  advancedRows(type) {
    return this.page.evaluate((type) => {
      const node = app.canvas.graph.nodes.find((one) => one.type === type);
      const advanced = node.widgets.filter((one) => one.options?.advanced);
      const row = (name) => document.querySelector(`[data-node-id="${node.id}"]`)?.textContent.includes(name);
      const isShown = (one) => (LiteGraph.vueNodesMode ? row(one.label ?? one.name) : !one.hidden && node.isWidgetVisible(one));
      return advanced.filter(isShown).map((one) => one.name);
    }, type);
  }

  /** Gives nodes of a type the least width that new nodes have. */
  narrow(type) {
    return this.page.evaluate((type) => {
      for (const node of app.graph.nodes.filter((one) => one.type === type)) node.setSize([225, node.size[1]]);
    }, type);
  }

  /** The pack's own widgets, and a common one, in the list of widgets that `window.subgraphNode` can show. */
  async offeredWidgets() {
    await this.page.evaluate(() => {
      const { $pinia } = document.querySelector("#vue-app").__vue_app__.config.globalProperties;
      app.canvas.selectNode(window.subgraphNode);
      $pinia._s.get("rightSidePanel").openPanel("subgraph");
    });
    const read = () => this.page.evaluate(() => document.body.innerText.match(/multirate_ras_\w+|cuda_graphs/g) ?? []);
    return this.until(read, (found) => found.length > 0);
  }

  /** Selects a node with the side panel open; the pack's own widgets that the panel lists, or the node's last input. */
  async widgetsInSidePanel(type, last) {
    await this.page.evaluate((type) => {
      const { $pinia } = document.querySelector("#vue-app").__vue_app__.config.globalProperties;
      app.canvas.selectNode(app.graph.nodes.find((one) => one.type === type));
      $pinia._s.get("rightSidePanel").openPanel("parameters");
    }, type);
    const panel = this.page.getByTestId("properties-panel");
    const read = async () => ((await panel.innerText()).match(new RegExp(`multirate_ras_\\w+|${last}`, "g")) ?? []);
    return this.until(read, (found) => found.length > 0);
  }

  setting(id, value) {
    return this.page.evaluate(([id, value]) => app.extensionManager.setting.set(id, value), [id, value]);
  }

  centre(type) {
    return this.page.evaluate((type) => {
      const node = app.canvas.graph.nodes.find((one) => one.type === type);
      app.canvas.centerOnNode(node);
      app.canvas.setDirty(true, true);
    }, type);
  }

  /** Two frames: what was asked for is drawn. For what the page does at a time of its own, use `until`. */
  settle(milliseconds = 150) {
    return this.page.waitForTimeout(milliseconds);
  }

  /**
   * Reads until two readings in a row are the same and complete. If that takes longer than `limit` milliseconds,
   * the last reading is returned, and the test's assertions say what is missing in it.
   */
  async until(read, isComplete = () => true, limit = 20_000) {
    const end = Date.now() + limit;
    for (let last = null; ; ) {
      const found = await read();
      const text = JSON.stringify(found);
      if ((text === last && isComplete(found)) || Date.now() > end) return found;
      last = text;
      await this.settle(100);
    }
  }

  /** The live view after a run, when it shows the whole run. */
  finishedPanel() {
    return this.until(() => this.panel(), (panel) => panel?.isOver);
  }

  /** `shownPictures`, when each of these node types shows at least as many images: node type -> count. */
  allPictures(wanted) {
    const isShown = (found) => Object.entries(wanted).every(([type, count]) => found[type] >= count);
    return this.until(() => this.shownPictures(), isShown);
  }

  screenshot(name) {
    return this.page.screenshot({ path: path.join(this.job.output, `${name}.png`) });
  }
}
