"""Lumina-Next-T2I for ComfyUI: the paper's second model (arXiv 2406.18583), which ComfyUI has no network for."""
