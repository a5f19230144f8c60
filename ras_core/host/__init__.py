"""The interface to ComfyUI: the only package of ras_core that imports it or uses its names.

Read `patch` (the entry point: what a node attaches to a model) and `outer_sample` (starts a run from
ComfyUI's arguments), `wrappers` (the wrappers of a run), `call` (one call of ComfyUI's model), `cache_plan`
and `memory` (choose the format of the K/V cache), `graphs_of_model` (CUDA graphs kept on a model),
`samplers`, `conditionings` (copied to the device once per run), `attention`, `compiler` (the CUDA graphs and
the compiler that ComfyUI has from 0.33 on), `requirements`, `options` (choices for the nodes' inputs), and
`names` (ComfyUI's keys).

Plans: `speed` (the plan of a run, and its noise levels), `plans` (finds the plans of a model), `calibration`
(measures plans), `measured_runs` (the sampling runs of a calibration), `planned_model` (a model with the RAS
settings of a plan), `plan_files` (saves plans) and `fingerprint` (identifies the model of saved plans).

1. `patch_model` clones a MODEL and attaches one OUTER_SAMPLE wrapper with the settings.
2. When sampling starts, that wrapper asks the settings what this run computes, starts the run, and adds its
   wrappers to its copy of the model options. A speed may replace the noise levels here.
3. PREPARE_SAMPLING chooses the format of the K/V cache, once the models are loaded.
4. SAMPLER_SAMPLE copies the conditionings to the device.
5. PREDICT_NOISE and APPLY_MODEL call `run.network_calls`.
6. At the end the trace is kept for later nodes; the wrappers are dropped with the run's model options.

ComfyUI's extension points: OUTER_SAMPLE in `patch`; PREDICT_NOISE, APPLY_MODEL and SAMPLER_SAMPLE in
`wrappers`; PREPARE_SAMPLING in `cache_plan`. To use another extension point, add a method to
`RunWrappers`, and a line to `RunWrappers.attach`. If the pack cannot work without that extension point, add
its name to `requirements`; otherwise attach the method only if `WrappersMP` has that name.

Latents over time are refused in `outer_sample` (runs) and `calibration`; `method.grid`, `run.live` and
`render.frames` support such latents already.

Imports: run and all below it.
"""
