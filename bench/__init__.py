"""Programs that measure the method: `python -m bench PROGRAM`, in the Python of the ComfyUI in COMFYUI_PATH.

`commands` lists the programs. Folders:
`common`: shared code: starting ComfyUI in this process, networks of true shapes, model files, timing.
`quality`: quality against cost: cells, references, sweeps, fronts, reports.
`studies`: each answers one question about the method, using `quality`.
`speed`: time and memory of whole runs; `reference`: the same for microsoft/RAS on diffusers.
`profile`: where the time of a step goes: profiler, CPU costs of eager steps, cost of the live view.
`checks`: correctness on a real GPU: graphs, K/V cache, graphs under dynamic VRAM. tests/gpu runs them too.
`results`: committed measurements.

The modules are imported as `ras_pack.bench` (the tests' alias), since ComfyUI has its own module `nodes`.
"""
