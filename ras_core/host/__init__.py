"""The interface to ComfyUI: no other package of ras_core imports ComfyUI or uses the names of its objects.

Modules that sample, in reading order:

- `patch`: the entry point, which a node attaches to a model.
- `outer_sample`: starts a run from ComfyUI's arguments.
- `wrappers`: the wrappers of a run.
- `second_models`: notices RAS settings without effect, namely those of a guider's second model.
- `call`: one call of ComfyUI's model.
- `replaced_blocks`: observes patches that replace blocks.
- `cache_plan`: chooses the format of the K/V cache.
- `memory`: measures and frees memory for this choice.
- `graphs_of_model`: keeps CUDA graphs on a model.
- `samplers`: the sampler of a run; `sampler_steps`: its evaluations, reported to ComfyUI.
- `traces`: finds the trace of the run that made a latent.
- `conditionings`: copies a run's conditionings to the device once.
- `attention`: ComfyUI's attention with grouped K/V heads.
- `compiler`: the CUDA graphs and the compiler that ComfyUI itself has from 0.33 on.
- `previews`: small images of latents, for the live view.
- `requirements`: checks ComfyUI's extension points, and names a model that is refused.
- `options`: choices for the nodes' inputs.
- `names`: keys of ComfyUI's dicts.

Modules for plans (a plan determines what a run of a given speed computes):

- `speed`: the plan of a run, and its noise levels; `known_levels`: where a run's own noise levels come from.
- `run_facts`: what is known of a run before it starts.
- `fewer_steps`: a run without RAS that costs as much as a run with RAS.
- `plans`: finds the plans of a model.
- `outlook`: estimates the time and the closeness of a run with a plan.
- `calibration`: measures plans.
- `measured_runs`: the sampling runs of a calibration.
- `planned_model`: a model with the RAS settings of a plan.
- `plan_files`: saves plans.
- `fingerprint`: identifies the model of saved plans.

What happens in a run:

1. `patch_model` clones a MODEL and attaches one OUTER_SAMPLE wrapper with the settings.
2. When sampling starts, that wrapper derives from the settings what this run computes, starts the run, and
   adds the run's wrappers to the run's copy of the model options. If the user chose a speed, the noise
   levels of its plan may replace the sampler's noise levels before the run starts.
3. The PREPARE_SAMPLING wrapper chooses the format of the K/V cache, once the run's models are loaded.
4. The SAMPLER_SAMPLE wrapper copies the conditionings to the device.
5. The PREDICT_NOISE and APPLY_MODEL wrappers call `run.network_calls`.
6. When the run ends, `patch` keeps the run's trace for later nodes. The run's wrappers disappear with its
   copy of the model options.

The code for ComfyUI's extension points: `patch` has OUTER_SAMPLE and the callback ON_PRE_RUN; `wrappers` has
PREDICT_NOISE, APPLY_MODEL and SAMPLER_SAMPLE; `cache_plan` has PREPARE_SAMPLING. To use another extension
point, add a method to `RunWrappers`, and a line to `RunWrappers.attach`. If the pack cannot work without that
extension point, add its name to `requirements`; otherwise attach the method only if ComfyUI's class
`WrappersMP` has that name.

Latents with a time axis (video) are not supported yet: `outer_sample` lets ComfyUI sample them without RAS,
and `calibration` raises an error. `method.grid`, `run.live` and `render.frames` can already process such
latents.

Imports: this package may import `run`, and the packages that `run` may import.
"""
