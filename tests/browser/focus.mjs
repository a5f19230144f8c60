// Which keys act on a selected node after the sliders in it were used: the live view's, and RAS Compare's.

import { prepare } from "./prepare.mjs";

const LIVE = ".multirate-ras-timeline input";
const COMPARE = ".multirate-ras-compare input";

export async function focus(browser, { workflow, sampler }) {
  const page = await browser.open();
  await prepare(page, workflow, sampler, { steps: 8, size: 128 });
  const end = await (await page.queue()).end();
  await page.finishedPanel();
  await page.allPictures({ SaveImage: 1 });
  const live = await use(page, sampler, LIVE);
  await addResult(page);
  return { end, live, compare: await use(page, "RASCompare", COMPARE), problems: page.problems };
}

/** How many nodes of a type are left after Delete, with its slider focused by keyboard, and after a drag and a click. */
async function use(page, type, slider) {
  const count = () => page.page.evaluate((type) => app.graph.nodes.filter((one) => one.type === type).length, type);
  const isFocused = () => page.page.evaluate((slider) => document.activeElement === document.querySelector(slider), slider);
  await page.page.evaluate((type) => {
    const node = app.graph.nodes.find((one) => one.type === type);
    app.canvas.centerOnNode(node);
    app.canvas.selectNode(node);
  }, type);
  await page.settle(500);
  const input = page.page.locator(slider);
  await input.focus();
  await page.page.keyboard.press("ArrowLeft");
  await page.page.keyboard.press("Delete");
  await page.settle(300);
  const byKeyboard = { isFocused: await isFocused(), left: await count() };
  const before = await input.inputValue();
  const { x, y, width, height } = await input.boundingBox();
  const mouse = page.page.mouse;
  await mouse.move(x + width * 0.7, y + height / 2);
  await mouse.down();
  await mouse.move(x + width * 0.3, y + height / 2, { steps: 5 });
  await mouse.move(x + width * 0.3, y - 40); // the drag ends outside the slider
  await mouse.up();
  await page.settle(300);
  const byMouse = { isFocused: await isFocused(), hasMoved: (await input.inputValue()) !== before };
  await page.page.keyboard.press("Delete");
  await page.settle(300);
  return { byKeyboard, byMouse: { ...byMouse, left: await count() } };
}

/** A node RAS Compare with the result of a run, made of the image that the graph has saved. */
function addResult(page) {
  return page.page.evaluate(() => {
    const saved = app.graph.nodes.find((one) => one.type === "SaveImage");
    const [image] = app.nodeOutputs[saved.id].images;
    const node = LiteGraph.createNode("RASCompare");
    node.pos = [saved.pos[0] + 1000, saved.pos[1]];
    app.graph.add(node);
    const images = { dense: image, ras: image, fewer: image };
    const [steps, closeness] = [{ dense: 8, fewer: 8 }, { ras: 1, fewer: 1 }];
    node.onExecuted({ ras_compare: [{ images, steps, closeness, accelerated: true, speedup: 1.5 }] });
  });
}
