"""Correctness checks on a real GPU: `graphs` and `kv` for each family with few blocks, `residency` for CUDA
graphs under dynamic VRAM (`residency_scene`, `residency_checks`).
"""
