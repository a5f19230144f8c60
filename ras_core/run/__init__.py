"""One run: everything that happens during one invocation of a sampler.

Read `state` (of a run) and `evaluation` (the state of one evaluation), `network_calls` (handles each
evaluation and each call of a network), `call` (one call, and the interface that `host/` implements for it),
`dense`, `regional` and `captured` (the three ways to run a call), `partial_forward` (the three interventions
in a call: gather, attention, scatter) with `active_rows` (the rows of active tokens), `coverage` (whether the
interventions reached every block), `sampler` (the multirate integrator over a schedule), `trace` and `live`
(reports after a run, and during it), `other_code` and `observation` (whether code of other packs
may see fewer rows), `tools` (objects that a run gets from `host/`), `noise_levels` (predicts
each evaluation's noise level), `timing` (timestamps on the device), `grouped_attention` (attention without
repeated K/V heads), `torch_compile` (runs compiled networks eagerly).

1. An evaluation starts: its step is looked up and, if this step is regional, its active tokens are selected.
2. Each call of the network runs dense (and fills the K/V cache), regional, or regional as the replay of a
   CUDA graph.
3. After a regional call, its fresh output and the cached output are merged for each branch, before guidance.
4. The evaluation ends: the selector observes the guided estimate, and the trace gets an entry.

`Trace.summary` writes the line that is logged at the end of a run.

Imports: graphs, kv, models, method, rows, config, errors. ComfyUI calls this package through `host/`.
"""
