"""Time and memory of whole runs: `cli` sends jobs (`job`) to processes of `worker`.

`cases` and `job` are pure; `run`, `measured`, `clocked` run and time a case; `table` and `plots` tell the
result.
"""
