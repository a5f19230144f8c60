"""Time and memory of whole runs: `cli` sends jobs (`job`) to `worker` processes.

`cases` and `job` are pure; `run`, `measured`, `clocked` run and time a case; `table` and `plots` present the
results.
"""
