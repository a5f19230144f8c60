"""Where the time of a step goes.

`run` profiles steps (`bench speed --profile`), with `ranges` around RAS's own work, read by `trace_shares`;
`eager_cost` counts what eager steps cost the CPU (`eager_run`, `counts`); `live_view` times the live view.
"""
