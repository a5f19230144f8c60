"""Programs that measure the method: `python -m bench PROGRAM`, in the Python of the ComfyUI in COMFYUI_PATH.

`commands` lists the programs. Folders:
`common`: start ComfyUI in this process, networks of true shapes, files for its loaders, clocks, progress.
`quality`: quality against cost: cells, references, sweeps, fronts, reports.
`studies`: one question about the method each, answered with the means of `quality`.
`speed`: time and memory of whole runs; `reference`: the same for microsoft/RAS on diffusers.
`profile`: where the time of a step goes: profiler, CPU costs of eager steps, cost of the live view.
`checks`: does it hold on a real GPU: graphs, K/V cache, graphs under dynamic VRAM. tests/gpu runs them too.
`results`: what was measured.

The modules are imported as `ras_pack.bench`, the tests' alias, since ComfyUI has a module `nodes` of its own.
"""
