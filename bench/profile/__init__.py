"""Where the time of a step goes.

`run` profiles steps (`bench speed --profile`): `ranges` marks RAS's own work in the profiler's trace, and
`trace_shares` computes from the trace how much time each part takes. `eager_cost` measures the CPU time of
steps without CUDA graphs (using `eager_run` and `counts`). `live_view` measures what the live view costs.
"""
