"""Quality against cost: `cli` reads the command line.

`cells`, `presets`, `costs`, `front`, `figures` are pure; `sources`, `sampling`, `solvers`, `references`,
`engine`, `features`, `plugins`, `real` make and measure images; `table`, `sweep`, `cluster` run many cells;
`report`, `plots`, `grids`, `conclude` tell the result; `prompts` and `options` are what they all get.
"""
