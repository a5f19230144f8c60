"""Programs that measure the method: `python -m bench PROGRAM`, in the Python of the ComfyUI in COMFYUI_PATH.

`commands` lists the programs. Folders:
`common`: code that all programs share: start ComfyUI in this process, build networks with the layer sizes of
    the real models, write model files, measure time.
`quality`: image quality against compute cost: cells (settings to test), references, sweeps, fronts, reports.
`studies`: programs that each answer one question about the method, using `quality`.
`speed`: time and memory of whole runs; `reference`: the same for microsoft/RAS on diffusers.
`profile`: where the time of a step goes: profiler, CPU costs of eager steps, cost of the live view.
`checks`: correctness on a real GPU: CUDA graphs, K/V cache, CUDA graphs under ComfyUI's dynamic VRAM. The
    tests in tests/gpu run the same checks.
`results`: committed measurements.

The modules are imported as `ras_pack.bench` (the tests' alias for the pack). If they were imported from the
repository's root, the pack's package `nodes` would clash with ComfyUI's module of that name.
"""
