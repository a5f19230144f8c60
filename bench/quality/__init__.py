"""Quality against cost: `cli` reads the command line.

These modules need no model and no device: `cells` (a cell is one sampling configuration to measure),
`presets` (lists of cells), `baselines` (cells without RAS), `plan_cells`, `speed_cells` and `shape_cells`
(cells with RAS), `sigma_grids` (noise schedules by name), `whole_steps` (forecasts of skipped steps),
`costs`, `front`, `figures`.

These modules sample images and measure them: `methods` (builds the model and the sampler of a cell),
`block_cache` (DBCache), `oracle` (exact keys and values in regional steps: an upper bound on the quality of
RAS), `known_tokens` (a trial: regional steps in inpainting), `calibrated` (measures which parts of the noise
schedule need the most steps on a model), `sources`, `sampling`, `solvers`, `references`, `engine`,
`features`, `weighted_figures`, `real`.

`generalise` judges the plans of a calibration on other prompts.

`edit_cells`, `edit_pairs`, `edit_engine`, `edit_sweep` and `edit_report` measure editing with a reference
image.

`table`, `sweep` and `cluster` run many cells. `report`, `rivals` (RAS against the best of all baselines),
`plan_report` (the plans of the input `speed`), `plots`, `grids` and `conclude` present the results. All of
them share `prompts` and `options` as inputs.

To add a baseline: add its method name to `cells`, apply the method in `methods.prepare_model`, and list its
settings in `baselines`. Its plot marker belongs in `plots`, and its name for tables and plots in `rivals`.
`weighted_figures` computes the figures that need weights which the pack does not include: LPIPS, CLIP score,
FID.
"""
