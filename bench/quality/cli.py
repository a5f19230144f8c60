"""The command line of the quality harness."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
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
"""SMALL and FULL: default values of --count, --size, --reference-steps and --batch on a CPU and on a GPU."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS.get(arguments.command, run_validation)(arguments)
    except RASError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. To continue where this run stopped, repeat the same command.", file=sys.stderr)
        return 130


def remote_side(options: dict) -> object:
    """Set up ComfyUI in a Ray worker process and return the worker's measuring engine.

    `options` are those of the process that started the worker, so that both processes sample alike.
    """
    from .options import options_from

    own = options_from(options)
    start(own.device, own.dtype, own.threads)
    from .cluster import RemoteSide

    return RemoteSide(own)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench quality", description=(__doc__ or "").splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="measure sampling configurations (cells) and write a report")
    _add_options(sweep)
    _add_cells(sweep)
    told = commands.add_parser("report", help="write the tables, plots and image grids of a finished sweep")
    told.add_argument("folder", type=Path)
    held_out = commands.add_parser(
        "held-out", help="rewrite the file of held-out prompts from the artwork archive"
    )
    held_out.add_argument("archive", type=Path, help="the artwork archive emoji.zip, made by training/")
    held_out.add_argument("--count", type=int, default=256)
    held_out.add_argument("--out", type=Path, default=HELD_OUT)
    rendered = commands.add_parser(
        "render", help="render the held-out artwork to a folder that --real and --artwork accept"
    )
    rendered.add_argument("archive", type=Path, help="the artwork archive emoji.zip, made by training/")
    rendered.add_argument("--out", type=Path, default=OUTPUT / "real")
    edit = commands.add_parser("edit", help="measure editing: plans with a reference image, and rivals")
    _add_options(edit, families="flux_edit")
    _add_edits(edit)
    calibrate = commands.add_parser("calibrate", help="calibrate on few prompts, and judge on the others")
    _add_options(calibrate)
    calibrate.add_argument("--calibration-prompts", type=int, default=2)
    for name in VALIDATIONS:
        command = commands.add_parser(name, help=f"validation: {_about(name)}")
        _add_options(command, families="sd3")
        if name == "inpaint":
            command.add_argument("--parts", type=_words, default=("half", "quarter", "sixteenth"))
            command.add_argument("--denoises", type=_floats, default=(1.0, 0.6))
        if name == "backgrounds":
            command.add_argument(
                "--artwork",
                default="",
                help="artwork folder written by `render`; without it, shapes are drawn",
            )
    return top


def _about(name: str) -> str:
    return {
        "metrics": "how well each token-ranking metric finds the tokens that change most",
        "start-step": "quality with a fixed number of dense steps, more of them at the start or more later",
        "pareto": "quality against cost for every method",
        "backgrounds": "token-ranking metrics on images with plain and with busy backgrounds",
        "drift": "errors of cached keys, values and attention outputs in long runs, with and without resets",
        "early-steps": "quality with 0, 2, 4 and 6 dense steps at the start",
        "inpaint": "PSNR inside the mask, of plain runs and of regional steps",
    }[name]


def _add_options(command: argparse.ArgumentParser, families: str = "sd3,lumina2,flux") -> None:
    add = command.add_argument
    add("--out", type=Path, help="folder for the results (default: bench/output/<command>)")
    add(
        "--families",
        type=_words,
        default=_words(families),
        help=f"models to measure, comma-separated (default: {families})",
    )
    add(
        "--checkpoint",
        default="",
        help="checkpoint file of your own model, which must include its text encoders and VAE",
    )
    add("--weights", default="", help="folder of the demo models' weights (default: those of the pack)")
    add("--prompts", type=Path, default=HELD_OUT, help="text file with one prompt per line")
    add(
        "--count",
        type=int,
        help="number of prompts to use, from the first on (default on a CPU: 2, on a GPU: 256)",
    )
    add("--size", type=int, help="image width and height in pixels (default on a CPU: 320, on a GPU: 512)")
    add("--batch", type=int, help="images sampled in one batch (default on a CPU: 2, on a GPU: 64)")
    add(
        "--reference-steps",
        type=int,
        help="steps of the converged trajectory, the reference of PSNR (default on a CPU: 200, GPU: 250)",
    )
    add("--cfg", type=float, default=0.0, help="guidance scale (default: 3.5; with --checkpoint 5)")
    add("--scheduler", default="simple")
    add("--default-steps", type=int, default=28, help="a dense run of this many steps has cost 1")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--dtype",
        choices=tuple(DTYPES),
        default="auto",
        help="precision of the network; auto: ComfyUI chooses",
    )
    add("--threads", type=int, default=0, help="CPU threads of torch; 0: torch chooses")
    add("--cache", type=Path, default=OUTPUT / "cache", help="folder that keeps reference trajectories")
    add(
        "--real",
        default="",
        help="folder of real images for FD-EffLite0: image files, or what the `render` command wrote",
    )
    add(
        "--with",
        dest="plugins",
        default="",
        help=f"further figures, if you have their weights: {', '.join(PLUGINS)}",
    )


def _add_cells(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--preset",
        choices=tuple(PRESETS),
        help="predefined list of cells; replaces --methods and the options that list settings of methods",
    )
    add(
        "--methods",
        type=_words,
        default=("dense", "multirate"),
        help=f"methods to measure: {', '.join(METHODS)}",
    )
    add(
        "--cells",
        type=Path,
        help="JSON file: a list of cells, or of plans as RAS Calibrate keeps them; measured on every family",
    )
    add(
        "--extra",
        type=json.loads,
        action="append",
        default=[],
        metavar="JSON",
        help="fields of RASConfig: each plan is run once more with them; may be given several times",
    )
    add(
        "--limit-seconds",
        type=float,
        default=0.0,
        help="time limit without --ray; cells that cannot start before it are left out; 0: no limit",
    )
    add("--samplers", type=_words, default=BASELINE_SAMPLERS, help="samplers of the method dense")
    add(
        "--grids",
        type=_words,
        default=("",),
        help="noise schedules, such as simple, beta, 8of40by3, calibrated, calibrated:0.5, density:2+1",
    )
    add(
        "--forms",
        type=_words,
        default=("taylor1",),
        help=f"forecasts of the method whole_steps: {', '.join(FORMS)}",
    )
    add("--probes", type=_ints, default=(1,), help="number of blocks that DBCache always runs")
    add(
        "--kv-caches",
        type=_words,
        default=("forecast",),
        help="kinds of K/V cache of the methods plan and exact_kv",
    )
    add("--steps", type=_ints, default=(28, 20, 14))
    add("--starts", type=_ints, default=(4,), help="numbers of steps at the start that are fully computed")
    add(
        "--resets",
        type=_ints,
        default=(4,),
        help="intervals of the fully computed steps after the start; 0: none",
    )
    add(
        "--ratios",
        type=_floats,
        default=(0.5, 0.25),
        help="shares of the tokens that a regional step processes",
    )
    add(
        "--orders",
        type=_ints,
        default=(2,),
        help="orders of the sampler of RAS and of whole_steps: 1 (Euler), 2 (DPM++ 2M)",
    )
    add(
        "--thresholds",
        type=_floats,
        default=(0.2,),
        help="reuse thresholds of LazyCache, EasyCache and DBCache",
    )
    add("--seeds", type=_ints, default=(0,))
    add(
        "--ray",
        default="",
        help="run on a Ray cluster: its address, or `local` to start a cluster on this machine",
    )
    add(
        "--workers", type=int, default=0, help="number of Ray workers; 0: as many as the cluster has room for"
    )


def _add_edits(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--artwork", type=Path, required=True, help="work folder of `python -m training train`")
    add("--limit-seconds", type=float, default=0.0, help="time limit; 0: no limit")
    add("--best-of", type=Path, help="measure only the best cells of the results in this folder")


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _words(text))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in _words(text))


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that the command line gives; the defaults of some depend on whether the device is a GPU.

    Also starts ComfyUI on the device.
    """
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
        threads=torch.get_num_threads(),  # Ray workers must use as many threads to get equal figures
        weights=str(Path(arguments.weights).resolve()) if arguments.weights else "",
        checkpoint=arguments.checkpoint,
        cache=str(arguments.cache.resolve()),
        real=arguments.real,
        plugins=plugins,
        **values,
    )


def families_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The model families to measure; with --checkpoint, only the user's checkpoint."""
    return ("checkpoint",) if arguments.checkpoint else arguments.families


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The cells of a sweep, from --cells, from --preset, or as all combinations of the given settings."""
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
        say("FD-EffLite0 is skipped, because it needs a folder of real images: name one with --real.")
    if find_spec("pytorch_msssim") is None:
        say("SSIM is skipped: pytorch-msssim is not installed (pip install -r bench/requirements.txt).")
    runner = None
    if arguments.ray:
        from .cluster import ray_runner

        runner = ray_runner(arguments.ray, options, arguments.workers)
    sweep(cells, options, out, runner, arguments.limit_seconds)
    print(conclude(out))
    return 0


def run_edit(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    count = arguments.count or (FULL if options.device == "cuda" else SMALL)["count"]
    from .edit_engine import EditEngine
    from .edit_pairs import read_pairs
    from .edit_report import write_readme
    from .edit_sweep import sweep_edits

    pairs, others = read_pairs(arguments.artwork, count, options.size)
    options = replace(options, prompts=pairs.prompts)
    out = arguments.out or OUTPUT / "edit"
    engine = EditEngine(options, pairs, others, out / "pictures")
    told = f"python -m bench quality edit --count {count} --size {options.size}"
    sweep_edits(engine, options, pairs, out, arguments.limit_seconds, arguments.best_of, told)
    print(write_readme(out))
    return 0


def run_calibrate(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    from .engine import Engine
    from .generalise import calibrated_plans, judge, write

    engine, judged, seconds = Engine(options), [], {}
    out = arguments.out or OUTPUT / "calibrate"
    for family in families_of(arguments):
        plans, seconds[family] = calibrated_plans(engine, family, arguments.calibration_prompts)
        judged += judge(engine, family, plans)
        print(write(judged, seconds, out))
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    from .conclude import conclude

    print(conclude(arguments.folder))
    return 0


def run_held_out(arguments: argparse.Namespace) -> int:
    count = write_held_out(arguments.archive, arguments.out, arguments.count)
    print(f"{count} prompts written to {arguments.out}")
    return 0


def run_render(arguments: argparse.Namespace) -> int:
    from .real import render_held_out

    print(f"{render_held_out(arguments.archive, arguments.out)} images written to {arguments.out}")
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
    "edit": run_edit,
    "calibrate": run_calibrate,
}
