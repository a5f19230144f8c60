"""The command line of the demo: its options, and the inputs of RAS KSampler that they change."""

from __future__ import annotations

import argparse
from pathlib import Path

from .paths import ROOT

OUTPUT = ROOT / "demo" / "output"
WORKFLOWS = {
    "sd3": ROOT / "example_workflows" / "ras_1_start_here.json",
    "lumina2": ROOT / "example_workflows" / "ras_lumina2_demo.json",
}
SPEEDS = ("1.5x", "2x", "2.5x", "3x")
DESCRIPTION = "One image per family, dense and with RAS, from the example workflow in a real ComfyUI."


def shipped_families() -> list[str]:
    """The families that have both an example workflow and demo weights in this checkout."""
    weights = ROOT / "demo" / "weights"
    return [
        family
        for family, path in WORKFLOWS.items()
        if path.is_file() and (weights / f"{family}.safetensors").is_file()
    ]


def command_line() -> argparse.ArgumentParser:
    """The parser of the demo's options."""
    parser = argparse.ArgumentParser(prog="make demo ARGS=...", description=DESCRIPTION)
    parser.add_argument(
        "--families", default=",".join(shipped_families()), help="comma-separated; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the images")
    parser.add_argument("--seed", type=int, help="used instead of the workflow's seed")
    parser.add_argument("--steps", type=int, help="used instead of the workflow's number of steps")
    parser.add_argument(
        "--ratio", type=float, dest="sample_ratio", help="speed custom, with this sample_ratio"
    )
    parser.add_argument("--speed", choices=SPEEDS, help="used instead of the workflow's speed")
    parser.add_argument("--size", type=int, help="width and height in pixels, used instead of the workflow's")
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The demo's options; ends the program if they are wrong."""
    parser = command_line()
    options = parser.parse_args(argv)
    options.families = [family for family in options.families.split(",") if family]
    unknown = [family for family in options.families if family not in shipped_families()]
    if unknown or not options.families:
        parser.error(f"no workflow with weights for {unknown or 'anything'}; available: {shipped_families()}")
    if options.speed and options.sample_ratio is not None:
        parser.error("--ratio sets speed to custom; leave out --speed or --ratio")
    return options


def sampler_settings(options: argparse.Namespace) -> dict[str, object]:
    """The inputs of RAS KSampler that the command line changes. A sample_ratio needs speed custom."""
    wanted = {key: getattr(options, key) for key in ("seed", "steps", "speed", "sample_ratio")}
    chosen = {key: value for key, value in wanted.items() if value is not None}
    return chosen | ({"speed": "custom"} if "sample_ratio" in chosen else {})
