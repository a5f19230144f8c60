"""Measure how much more CPU time an eager regional step takes than a step without RAS ("ComfyUI alone") on as
many rows, for each setting of `kv_cache`.
"""

from __future__ import annotations

import argparse
import importlib

from ..common.progress import say
from ..common.setup import start

KV_FORMATS = ("gpu", "fp8", "forecast")
FAMILIES = ("sd3_medium", "lumina2", "z_image")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench eager-cost")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated list")
    parser.add_argument("--kv-cache", default=",".join(KV_FORMATS), help="comma-separated list of settings")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the timing of each family")
    options = parser.parse_args(argv)
    start("cpu", threads=1)
    # Use PyTorch's attention, as ComfyUI does on GPUs. ComfyUI reads this when it imports its attention
    # module.
    importlib.import_module("comfy.cli_args").args.use_pytorch_cross_attention = True
    from .eager_run import HEADER, costs, line

    say(HEADER)
    format_names = options.kv_cache.split(",")
    for name in options.families.split(","):
        comfy_alone, *found = costs(name, format_names, options.seconds)
        say(line(name, "ComfyUI alone", comfy_alone))
        for format_name, cost in zip(format_names, found, strict=True):
            say(line(name, f"{format_name} - ComfyUI", cost - comfy_alone))
    return 0
