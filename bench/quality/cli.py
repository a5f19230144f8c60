"""The command line of the quality harness."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ...ras_core.errors import RASError
from ..common.paths import OUTPUT
from ..common.progress import say
from ..common.setup import DTYPES, pick_device, start
from .cells import METHODS, Cell, grid
from .options import Options
from .plan_cells import read_cells, with_extra
from .presets import BASELINE_SAMPLERS, PRESETS, preset
from .prompts import HELD_OUT, read_prompts, write_held_out
from .weighted_figures import PLUGINS, parse_plugins
from .whole_steps import FORMS

VALIDATIONS = ("metrics", "start-step", "pareto", "backgrounds", "drift", "early-steps", "inpaint")
SMALL = {"count": 2, "size": 320, "reference_steps": 200, "batch": 2}
FULL = {"count": 256, "size": 512, "reference_steps": 250, "batch": 64}
"""Defaults of the options on a CPU and on a GPU."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS.get(arguments.command, run_validation)(arguments)
    except RASError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Repeat the command to continue.", file=sys.stderr)
        return 130


def remote_side(options: dict) -> object:
    """Start a Ray worker: the same setup as in this process, then its engine."""
    from .options import options_from

    own = options_from(options)
    start(own.device, own.dtype, own.threads)
    from .cluster import RemoteSide

    return RemoteSide(own)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench quality", description=(__doc__ or "").splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="measure cells and report on them")
    _add_options(sweep)
    _add_cells(sweep)
    told = commands.add_parser("report", help="write the tables, plots and image grids of a finished sweep")
    told.add_argument("folder", type=Path)
    held_out = commands.add_parser(
        "held-out", help="choose the held-out prompts again from the artwork archive"
    )
    held_out.add_argument("archive", type=Path, help="emoji.zip of training/")
    held_out.add_argument("--count", type=int, default=256)
    held_out.add_argument("--out", type=Path, default=HELD_OUT)
    rendered = commands.add_parser("render", help="render the held-out artwork, for --real and --artwork")
    rendered.add_argument("archive", type=Path, help="emoji.zip of training/")
    rendered.add_argument("--out", type=Path, default=OUTPUT / "real")
    for name in VALIDATIONS:
        command = commands.add_parser(name, help=f"validation: {_about(name)}")
        _add_options(command, families="sd3")
        if name == "inpaint":
            command.add_argument("--parts", type=_words, default=("half", "quarter", "sixteenth"))
            command.add_argument("--denoises", type=_floats, default=(1.0, 0.6))
        if name == "backgrounds":
            command.add_argument("--artwork", default="", help="folder with pictures.npy of training/")
    return top


def _about(name: str) -> str:
    return {
        "metrics": "which region metric picks the tokens that change",
        "start-step": "where in the schedule the same number of dense steps belongs",
        "pareto": "quality over cost of every method",
        "backgrounds": "simple subjects on plain and on busy backgrounds",
        "drift": "errors of cached values in a long run, with and without resets",
        "early-steps": "0, 2, 4 and 6 dense steps at the start",
        "inpaint": "PSNR inside the mask, of plain runs and of regional steps",
    }[name]


def _add_options(command: argparse.ArgumentParser, families: str = "sd3,lumina2,flux") -> None:
    add = command.add_argument
    add("--out", type=Path, help="folder for the results (default: bench/output/<command>)")
    add("--families", type=_words, default=_words(families), help=f"default: {families}")
    add("--checkpoint", default="", help="a checkpoint of your own, with its text encoders and VAE")
    add("--weights", default="", help="folder of the demo models' weights")
    add("--prompts", type=Path, default=HELD_OUT, help="text file with one prompt a line")
    add("--count", type=int, help="how many of the prompts (CPU: 2, GPU: 256)")
    add("--size", type=int, help="image size, pixels (CPU: 320, GPU: 512)")
    add("--batch", type=int, help="images sampled together (CPU: 2, GPU: 64)")
    add("--reference-steps", type=int, help="of the converged trajectory (CPU: 200, GPU: 250)")
    add("--cfg", type=float, default=0.0, help="guidance scale (default: 3.5 for the demo models, else 5)")
    add("--scheduler", default="simple")
    add("--default-steps", type=int, default=28, help="dense steps whose cost is 1")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=tuple(DTYPES), default="auto", help="of the network; auto is ComfyUI's choice")
    add("--threads", type=int, default=0, help="of torch on the CPU; 0 is torch's choice")
    add("--cache", type=Path, default=OUTPUT / "cache", help="folder for converged trajectories")
    add(
        "--real",
        default="",
        help="real images for FD-EffLite0: a folder of files, or artwork rendered by training/",
    )
    add("--with", dest="plugins", default="", help=f"further figures, if you have them: {', '.join(PLUGINS)}")


def _add_cells(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--preset", choices=tuple(PRESETS), help="a ready list of cells; the axes below are then ignored")
    add("--methods", type=_words, default=("dense", "multirate"), help=f"of {', '.join(METHODS)}")
    add("--cells", type=Path, help="JSON list of cells, or of plans of ras_core, for every family")
    add(
        "--extra",
        type=json.loads,
        action="append",
        default=[],
        metavar="JSON",
        help="further settings of RASConfig: each plan is run once more with them; may be repeated",
    )
    add("--limit-seconds", type=float, default=0.0, help="leave out what does not fit; 0 for no limit")
    add("--samplers", type=_words, default=BASELINE_SAMPLERS, help="of the method dense")
    add(
        "--grids",
        type=_words,
        default=("",),
        help="simple, beta, 8of40by3, calibrated, calibrated:0.5, density:2+1",
    )
    add("--forms", type=_words, default=("taylor1",), help=f"of whole_steps: {', '.join(FORMS)}")
    add("--probes", type=_ints, default=(1,), help="blocks that DBCache always runs")
    add("--kv-caches", type=_words, default=("forecast",), help="of plan and exact_kv")
    add("--steps", type=_ints, default=(28, 20, 14))
    add("--starts", type=_ints, default=(4,), help="dense steps at the start")
    add("--resets", type=_ints, default=(4,), help="a dense step every so many")
    add("--ratios", type=_floats, default=(0.5, 0.25), help="shares of active tokens")
    add("--orders", type=_ints, default=(2,), help="of the multirate integrator: 1, 2")
    add("--thresholds", type=_floats, default=(0.2,), help="of LazyCache, EasyCache and DBCache")
    add("--seeds", type=_ints, default=(0,))
    add("--ray", default="", help="address of a Ray cluster, or local")
    add("--workers", type=int, default=0, help="on the Ray cluster; 0 takes what it has")


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _words(text))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in _words(text))


def options_of(arguments: argparse.Namespace) -> Options:
    """Options from the command line, with the defaults of the device; starts ComfyUI on it."""
    plugins = parse_plugins(arguments.plugins)
    device = pick_device(arguments.device)
    given = {name: getattr(arguments, name) for name in SMALL if getattr(arguments, name) is not None}
    values = {**(FULL if device == "cuda" else SMALL), **given}
    prompts = read_prompts(arguments.prompts, values.pop("count"))
    start(device, arguments.dtype, arguments.threads)
    import torch

    return Options(
        prompts=prompts,
        cfg=arguments.cfg,
        scheduler=arguments.scheduler,
        default_steps=arguments.default_steps,
        device=device,
        dtype=arguments.dtype,
        threads=torch.get_num_threads(),  # a remote worker needs the same values to get the same numbers
        weights=str(Path(arguments.weights).resolve()) if arguments.weights else "",
        checkpoint=arguments.checkpoint,
        cache=str(arguments.cache.resolve()),
        real=arguments.real,
        plugins=plugins,
        **values,
    )


def families_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The requested families; with a user's checkpoint, only that."""
    return ("checkpoint",) if arguments.checkpoint else arguments.families


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The cells of a sweep."""
    families = families_of(arguments)
    if arguments.cells:
        cells = read_cells(arguments.cells, families)
    elif arguments.preset:
        cells = preset(arguments.preset, families, arguments.seeds)
    else:
        cells = _grid_of(arguments, families)
    return with_extra(cells, arguments.extra)


def _grid_of(arguments: argparse.Namespace, families: tuple[str, ...]) -> list[Cell]:
    return grid(
        families, arguments.methods, arguments.samplers, arguments.steps, arguments.starts,
        arguments.resets, arguments.ratios, arguments.orders, arguments.thresholds, arguments.seeds,
        arguments.grids, arguments.forms, arguments.probes, arguments.kv_caches,
    )  # fmt: skip


def run_sweep(arguments: argparse.Namespace) -> int:
    cells, options = cells_of(arguments), options_of(arguments)
    from .conclude import conclude
    from .sweep import sweep

    out = arguments.out or OUTPUT / (arguments.preset or "sweep")
    if not options.real:
        say("FD-EffLite0 is skipped: it needs real pictures, named with --real.")
    if find_spec("pytorch_msssim") is None:
        say("SSIM is skipped: it needs pytorch-msssim (pip install -r bench/requirements.txt).")
    runner = None
    if arguments.ray:
        from .cluster import ray_runner

        runner = ray_runner(arguments.ray, options, arguments.workers)
    sweep(cells, options, out, runner, arguments.limit_seconds)
    print(conclude(out))
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    from .conclude import conclude

    print(conclude(arguments.folder))
    return 0


def run_held_out(arguments: argparse.Namespace) -> int:
    count = write_held_out(arguments.archive, arguments.out, arguments.count)
    print(f"{count} prompts in {arguments.out}")
    return 0


def run_render(arguments: argparse.Namespace) -> int:
    from .real import render_held_out

    print(f"{render_held_out(arguments.archive, arguments.out)} images in {arguments.out}")
    return 0


def run_validation(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    from ..studies import COMMANDS as VALIDATION_COMMANDS

    name = arguments.command
    out = arguments.out or OUTPUT / name
    own = {"backgrounds": ("artwork",), "inpaint": ("parts", "denoises")}.get(name, ())
    extra = {each: getattr(arguments, each) for each in own}
    for family in families_of(arguments):
        print(VALIDATION_COMMANDS[name](family, options, out, **extra))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "sweep": run_sweep,
    "report": run_report,
    "held-out": run_held_out,
    "render": run_render,
}
