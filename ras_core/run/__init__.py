"""One run: everything that happens during one invocation of a sampler.

Read `state` (of a run) and `evaluation` (the state of one evaluation), `network_calls` (handles each
evaluation and each call of a network), `call` (one call, and the interface that `host/` implements for it),
`dense`, `regional` and `captured` (the three ways to run a call), `partial_forward` (the three interventions
in a call: gather, attention, scatter) with `active_rows` (the rows of active tokens), `coverage` (whether the
interventions reached every block), `sampler` (the multirate integrator over a schedule), `trace` and `live`
(reports, after and during a run), `tools` (services of a run), `noise_levels`, `timing`, `grouped_attention`,
`torch_compile`.

1. An evaluation starts: its step is looked up and, if that is regional, its active tokens are selected.
2. Each call of the network runs dense (filling the cache), regional, or as the replay of a CUDA graph.
3. Fresh and cached outputs are merged for each branch, before guidance.
4. The evaluation ends: the selector observes the guided estimate, and the trace gets an entry.

`Trace.summary` composes the line that is logged at the end of a run.

Imports: graphs, kv, models, method, rows, config, errors. ComfyUI calls this package through `host/`.
"""
