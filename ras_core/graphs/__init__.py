"""Regional calls as CUDA graphs: captured once, then replayed, within a run and across runs.

Read `eligibility` (what may be captured); `network_identity`, `code_identity` and `tensors` (what a graph
depends on); `pages`, `residency` and `preset` (weights that ComfyUI may evict); `tape` (CUDA graphs) and
`capture` (one call on buffers of its own); `store` and `leases` (what a model keeps between runs, and what a
run borrows); `sightings` (when a call is due for capture); `overlap` (replays of one evaluation in parallel);
`network_graphs` (one network in one run) and `session` (one run); `weight_casts` with `cast_kernel` (float8
weights in captured calls).

1. On the first call of a network in a run, `network_identity.inspect` describes the network. Graphs that
   were captured on a different one are dropped.
2. A dense call gets K/V buffers of an earlier run, if their graphs fit (`leases`).
3. A regional call is captured when its form (its number of active tokens, its options) occurs for the second
   time; under dynamic VRAM, inside `Residency.captured`.
4. Later calls copy their inputs to the graph's buffers and replay it, inside `Residency.held`.
5. At the end of the run the buffers go back to the store. Graphs stay if enough memory is free.

Imports: kv, errors. `tape.Tape` is the interface to CUDA; tests implement it without a GPU.
"""
