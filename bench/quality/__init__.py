"""Quality against cost: `cli` reads the command line.

Pure: `cells`, `presets`, `baselines` and `plan_cells` (the cells of both sides), `sigma_grids` (grids by
name), `whole_steps` (forecasts of skipped steps), `costs`, `front`, `figures`.

`methods` (from a cell to model and sampler), `block_cache` (DBCache), `oracle` (the bound of exact keys and
values), `known_tokens` (regional steps in inpainting, a trial), `calibrated` (where steps belong on a model),
`sources`, `sampling`, `solvers`, `references`, `engine`, `features`, `weighted_figures`, `real` make and
measure images; `table`, `sweep`, `cluster` run many cells; `report`, `rivals` (RAS against the best of all),
`plots`, `grids`, `conclude` present the results; `prompts` and `options` are shared inputs.

A new baseline is a method in `cells`, what applies it in `methods.prepare_model`, and its settings in
`baselines`; its mark is in `plots`, its name in `rivals`. `weighted_figures` has the figures that need
weights of their own: LPIPS, CLIP score, FID.
"""
