"""Multirate RAS: region-adaptive sampling (arXiv 2502.10389) for diffusion transformers in ComfyUI."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
