"""One sampler invocation.

Read `state` (what a run carries), `network_calls` (each evaluation and each call of the network),
`partial_forward` (the three interventions in a call: gather, attention, scatter), `active_rows` (which rows
those keep), `sampler` (the multirate integrator as a sampler), `trace` and `live` (what a run reports),
`noise_levels`, `timing`, `grouped_attention`, `torch_compile`.

1. An evaluation begins: its step is found, and its active tokens if that is regional.
2. Each call of the network runs dense (filling the cache), regional, or as a replay.
3. Fresh and cached outputs are merged for each branch, before guidance.
4. The evaluation ends: the selector observes the guided estimate, the trace gets its entry.

Imports: graphs, kv, models, method, rows, config, errors. ComfyUI calls this package through `host/`.
"""
