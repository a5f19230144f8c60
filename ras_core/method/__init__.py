"""The method: which steps are regional, which tokens are active in them, and how each token is integrated.

Read `schedule` (dense and regional steps), `selector` (selection by predicted change, and its state during a
run), `metric` and `selection` (selection by the paper's rule), `preferences` (masks of the user),
`integrator` (each token with its own step size) and `grid` (from latent pixels to tokens and back).

Plans: `sigma_grid` (placement of steps), `plan`, `plan_set` (what the runs of each speed compute),
`plan_json` (reading them),
`plan_candidates` (token shares to try at a given cost), `family_plans` (for a model without a calibration).

1. `plan_steps` decides which steps of a schedule are dense and which are regional.
2. After each evaluation a `Selector` observes the denoised estimate: how fast each token changes.
3. Before a regional step it selects the tokens whose estimate has probably changed most since they were
   computed.
4. `multirate_step` integrates each token over the time since its own last evaluation.

To change it: a metric of the paper's rule is a name in `config.Metric` and a branch in `metric`; another rule
is a `Selector`. `integrator` has the orders (a third one needs a `History` of three evaluations), and
`host/samplers` the samplers that have them.

Imports: config, errors. Numbers and tensors in and out; no model, no run, no ComfyUI.
"""
