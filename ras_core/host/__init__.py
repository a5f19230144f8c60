"""The interface to ComfyUI: the only package of ras_core that imports it or uses its names.

Read `patch` (the entry point: what a node attaches to a model) and `outer_sample` (starts a run from
ComfyUI's arguments), `wrappers` (the wrappers of a run), `call` (one call of ComfyUI's model), `cache_plan`
and `memory` (choose the format of the K/V cache), `graphs_of_model` (CUDA graphs kept on a model),
`samplers`, `conditionings` (copied to the device once per run), `attention`, `compiler` (later versions' own
CUDA graphs and compiler), `requirements`, `options` (choices for the nodes' inputs), and `names` (ComfyUI's
keys).

Plans: `speed` (the plan of a run, and its noise levels), `plans` (which a model has), `calibration` (measures
them), `measured_runs` (its sampling), `planned_model` (RAS as a plan says), `plan_files` and `fingerprint`
(what is kept, and for which model).

1. `patch_model` clones a MODEL and attaches one OUTER_SAMPLE wrapper with the settings.
2. When sampling starts, that wrapper asks the settings what this run computes, starts it, and adds the run's
   wrappers to its copy of the model options. A speed may replace the noise levels here.
3. PREPARE_SAMPLING chooses the format of the K/V cache, once the models are loaded.
4. SAMPLER_SAMPLE copies the conditionings to the device.
5. PREDICT_NOISE and APPLY_MODEL call `run.network_calls`.
6. At the end the trace is kept for later nodes; the wrappers are dropped with the run's model options.

ComfyUI's extension points: OUTER_SAMPLE in `patch`; PREDICT_NOISE, APPLY_MODEL and SAMPLER_SAMPLE in
`wrappers`; PREPARE_SAMPLING in `cache_plan`. To use another one, add a method and a line to
`RunWrappers.attach`. If the pack cannot work without it, add its name to `requirements`; otherwise attach it
only if `WrappersMP` has it.

Latents over time are refused in `outer_sample` (runs) and `calibration`; `method.grid`, `run.live` and
`render.masks` support them already.

Imports: run and all below it.
"""
