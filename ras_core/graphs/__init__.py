"""Captures regional calls as CUDA graphs once, and replays them in the same run and in later runs.

Read `eligibility` (what may be captured); `network_identity`, `code_identity` and `tensors` (what a graph
depends on); `pages`, `residency`, `step_layers`, `layer_uses` and `preset` (weights that ComfyUI may evict,
and which of them a step uses); `tape` (CUDA graphs) and `capture` (one call on buffers of its own); `store`
and `leases` (what a model keeps between runs, and what a run borrows); `sightings` (when a call is due for
capture); `overlap` (replays of one evaluation in parallel); `network_graphs` (one network in one run) and
`session` (one run); `weight_casts` with `cast_kernel` (float8 weights in captured calls).

1. On the first call of a network in a run, `network_identity.inspect` describes the network. Graphs that were
   captured on a network with other weights or other code are dropped.
2. A dense call can borrow the K/V buffers of an earlier run. Two things must be the same as in that run: the
   K/V format, and the signature (shapes and dtypes) of the call's inputs. Graphs that read these buffers can
   then be replayed (`leases`).
3. A regional call is captured when its form (its number of active tokens, its options) occurs for the second
   time. Under dynamic VRAM, where ComfyUI may evict weights during a run, the weights are checked and pinned
   during the capture (`residency.Residency.captured`).
4. Later calls of the same form copy their inputs to the graph's buffers and replay the graph. Under dynamic
   VRAM, the weights are checked and pinned during the launch of the replay (`residency.Residency.held`).
5. At the end of the run the K/V buffers are returned to the store. If enough memory is free, the buffers and
   their graphs are kept for the next run.

Imports: kv, errors. `tape.Tape` is the interface to CUDA; tests implement it without a GPU.
"""
