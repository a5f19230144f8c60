"""Correctness checks on a real GPU.

`graphs` checks captured steps (`graph_checks`) and `kv` the K/V cache, for each model family. `residency`
checks CUDA graphs under ComfyUI's dynamic VRAM (`residency_scene`, `residency_checks`).
"""
