"""Lumina-Next-T2I (arXiv 2406.18583), the second model of the RAS paper, for which ComfyUI has no network."""
