"""Quality against cost: `cli` reads the command line.

`cells`, `presets`, `costs`, `front`, `figures` are pure; `sources`, `sampling`, `solvers`, `references`,
`engine`, `features`, `weighted_figures`, `real` generate and measure images; `table`, `sweep`, `cluster` run
many cells; `report`, `plots`, `grids`, `conclude` present the results. All of them use `prompts` and
`options`.

A new baseline is a method in `cells`, the node that applies it in `sampling.prepare_model`, and its settings
in `presets`; its marker and name are in `plots`. `weighted_figures` has the figures that need weights of
their own: LPIPS, CLIP score, FID.
"""
