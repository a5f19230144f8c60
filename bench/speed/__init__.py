"""Time and memory of whole runs.

`cli` is the command line, and sends each job (`job`) to a process (`worker`). In the worker process, `run`,
`measured` and `clocked` sample a case and time it. `cases` lists the cases and their variants. `table` and
`plots` present the results. `cases` and `job` import neither torch nor ComfyUI.
"""
