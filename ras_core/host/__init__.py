"""Everything that bears ComfyUI's names; the only package of ras_core that imports it.

Read `patch` (the entrance: what a node attaches) and `outer_sample` (what a run begins from), `wrappers`
(one run's wrappers), `call` (one call of ComfyUI's model), `cache_plan` and `memory` (how the K/V cache is
kept), `graphs_of_model` (CUDA graphs kept on a model), `samplers`, `conditionings` (on the device for a run),
`attention`, `compiler` (ComfyUI's own graphs and compiler, of later versions), `requirements`, `options`
(of the nodes' settings), and `names` (ComfyUI's keys).

Plans: `plans` (which a model has), `calibration` (measures them), `measured_runs` (its sampling),
`planned_model` (RAS as a plan says), `plan_files` and `fingerprint` (what is kept, and for which model).

1. `patch_model` clones a MODEL and attaches one OUTER_SAMPLE wrapper with the settings.
2. When sampling starts, that wrapper begins a run and attaches the run's wrappers to its copy of the model
   options.
3. PREPARE_SAMPLING decides how the K/V cache is kept, once the models are loaded.
4. SAMPLER_SAMPLE copies the conditionings to the device.
5. PREDICT_NOISE and APPLY_MODEL lead to `run.network_calls`.
6. At the end the trace is kept for later nodes; the wrappers go with the run.

Imports: run and all below it.
"""
