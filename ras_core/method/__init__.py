"""The method: which steps are regional, which tokens are active in them, and how each token is integrated.

These modules compute a run; read them in this order:

- `schedule`: which steps are dense and which regional
- `selector`: selects tokens by predicted change, and keeps the state of the selection during a run
- `waiting`: limits how long a token may stay cached
- `metric` and `selection`: select tokens by the rule of the paper (arXiv 2502.10389) instead
- `preferences`: the user's masks
- `integrator`: integrates each token with its own step size, from the evaluations in `history`; `adams` has
  the step of its most accurate solver
- `grid`: maps latent pixels to tokens and back
- `shares`: shares of tokens, as steps compute them and as texts say them

These modules plan a run that is to reach a given speed: `sigma_grid` (at which noise levels the steps are),
`plan` and `plan_set` (what a run of each speed computes), `rhythm` (how dense and regional steps follow
each other), `editing` (the same for runs with reference images), `plan_json` (reads plans),
`regional_cost` and `plan_candidates` (what a regional step costs, and which token shares to try at a given
cost), `calibrating` (what a calibration tries), `plan_fitting` (other token shares, with which another run
has the cost of the plan's speed), `family_plans` (plans for a model that has not been calibrated), and
`few_steps` and `small_images` (which runs have too few steps, and which images too few tokens, for regional
steps).

1. `plan_steps` decides which steps of a schedule are dense and which are regional.
2. After each evaluation a `Selector` observes the denoised estimate, to know how fast each token changes.
3. Before a regional step the `Selector` selects the tokens whose denoised estimate has probably changed most
   since it was last computed.
4. `multirate_step` integrates each token over the time since its own last evaluation.

To add a metric to the paper's selection rule (its equation 1), add a name to `config.Metric` and compute
the metric in `metric`. To add a selection rule, write a subclass of `Selector`. To add a solver, extend
`integrator` (a third-order solver needs a `History` of three evaluations) and `host/samplers`, which maps
ComfyUI's samplers to solvers.

Imports: config, errors. All functions and classes compute with numbers and tensors; none depends on a
model, a run or ComfyUI.
"""
