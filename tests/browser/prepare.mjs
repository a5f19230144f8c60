// What most scenarios begin with: a workflow whose run is short.

export const NEW_SEED = () => Math.floor(Math.random() * 2 ** 31); // ComfyUI does not run an unchanged graph again

/** A short run, yet long enough for several messages. */
export async function prepare(page, workflow, sampler, { steps = 16, size = 320 } = {}) {
  await page.load(workflow);
  const settings = { speed: "custom", start_percent: 0.18, error_reset_every: 5 }; // three dense of 16
  await page.set(sampler, { seed: NEW_SEED(), steps, ...settings, sample_ratio: 0.3 });
  await page.set("EmptySD3LatentImage", { width: size, height: size });
  await page.centre(sampler);
  await page.settle();
}
