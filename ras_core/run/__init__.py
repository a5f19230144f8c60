"""One sampler invocation.

Read `state` (what a run carries) and `evaluation` (what one evaluation carries), `network_calls` (each
evaluation and each call of a network), `call` (one call, and what ComfyUI's side must offer of it),
`dense`, `regional` and `captured` (the three ways in which a call runs), `partial_forward` (the three
interventions in a call: gather, attention, scatter) with `active_rows` (which rows these keep), `coverage`
(whether they reached every block), `sampler` (the multirate integrator over a schedule), `trace` and `live`
(what a run reports), `tools`, `noise_levels`, `timing`, `grouped_attention`, `torch_compile`.

1. An evaluation begins: its step is found, and its active tokens if that is regional.
2. Each call of the network runs dense (filling the cache), regional, or as a replay.
3. Fresh and cached outputs are merged for each branch, before guidance.
4. The evaluation ends: the selector observes the guided estimate, the trace gets its entry.

Imports: graphs, kv, models, method, rows, config, errors. ComfyUI calls this package through `host/`.
"""
