"""Where the time of a step goes.

`run` profiles steps (`bench speed --profile`): `ranges` marks RAS's own work in the trace, `trace_shares`
evaluates it. `eager_cost` measures the CPU cost of eager steps (`eager_run`, `counts`); `live_view` times the
live view.
"""
