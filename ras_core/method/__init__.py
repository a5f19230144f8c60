"""The method: which steps are regional, which tokens are active in them, how each token is integrated.

Read `schedule` (dense and regional steps), `selector` (what a run's selection remembers), `selection` and
`metric` (the scores), `preferences` (masks of the user), `integrator` (each token with steps of its own) and
`grid` (between latent pixels and tokens).

Plans: `sigma_grid` (where steps belong), `plan` and `plan_set` (what a speed computes, as data),
`plan_candidates` (shares worth a try at a cost), `family_plans` (for a model that nobody calibrated).

1. `plan_steps` says which steps of a schedule are dense.
2. After each evaluation a `Selector` observes the denoised estimate: how fast each token changes.
3. Before a regional step it selects the tokens whose estimate has probably moved most since they were
   computed.
4. `multirate_step` integrates each token over the time since its own last evaluation.

Imports: config, errors. Numbers and tensors in and out; no model, no run, no ComfyUI.
"""
