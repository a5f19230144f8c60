"""Everything that bears ComfyUI's names; the only package of ras_core that imports it.

Read `patch` (the wrapper that a node attaches, memory planning, CUDA graphs of a model), `conditionings`
(on the device for a run), `compiler` (ComfyUI's own graphs and compiler, of later versions).

Plans: `plans` (which a model has), `calibration` (measures them), `measured_runs` (its sampling),
`planned_model` (RAS as a plan says), `plan_files` and `fingerprint` (what is kept, and for which model).

1. `patch_model` clones a MODEL and attaches one OUTER_SAMPLE wrapper with the settings.
2. When sampling starts, that wrapper makes the run and adds wrappers to the run's copy of the model
   options.
3. PREPARE_SAMPLING decides how the K/V cache is kept, once the models are loaded.
4. PREDICT_NOISE and APPLY_MODEL lead to `run.network_calls`.
5. At the end the trace is kept for later nodes, and all else goes.

Imports: run and all below it.
"""
