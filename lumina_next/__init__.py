"""Lumina-Next-T2I (arXiv 2406.18583), the second of the two models in the RAS paper. ComfyUI has no network
for it, so this package contains one.
"""
