"""Lumina-Next-T2I (arXiv 2406.18583), the RAS paper's second model, whose network ComfyUI does not have."""
