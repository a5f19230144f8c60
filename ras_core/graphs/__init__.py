"""Regional calls as CUDA graphs: captured once, replayed in one run and over runs.

Read `eligibility` (what may be captured), `network_identity` (what a graph depends on), `residency`
(weights that ComfyUI may evict), `capture` (one call on fixed addresses), `session` (what a model's runs
keep, and one run's dealings with it), `overlap` (replays of one evaluation in parallel), `weight_casts` with
`cast_kernel` (float8 weights in captured calls).

1. At a network's first call of a run `network_identity.inspect` says what it is: graphs of another one are
   dropped.
2. A dense call gets the K/V buffers of an earlier run, if its graphs fit.
3. A regional form that comes for the second time is captured, inside `Residency.captured` under dynamic
   VRAM.
4. Each further call copies its inputs to the graph's addresses and replays it, inside `Residency.held`.
5. The run's end gives the buffers back; graphs stay while memory is plentiful.

Imports: kv, errors. A tape stands between this package and CUDA, so that tests need no GPU.
"""
