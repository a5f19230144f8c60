"""Train the autoencoder and the transformers on one machine with one or two GPUs, in a fixed time.

`python -m training train --archive emoji.zip --work /tmp/work --seconds 1380`
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .data import is_held_out, read_items, render_all

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).parent
FAMILY_NAMES = ("sd3", "lumina2", "flux", "flux_edit")
FINAL_SECONDS = 35.0
SMOKE_ITEMS = 5


@dataclass(frozen=True)
class Options:
    """Options of the command line that every stage of the training needs."""

    archives: tuple[Path, ...]
    work: Path
    smoke: bool
    autoencoder_seconds: float
    span: tuple[float, float]

    @property
    def autoencoder(self) -> Path:
        return self.work / "autoencoder.safetensors"


def render_stage(options: Options) -> None:
    """Render all images of the archives into one file in the work folder."""
    found = [(archive, item) for archive in options.archives for item in read_items(archive)]
    if options.smoke:
        held_out = [pair for pair in found if is_held_out(pair[1].hexcode, pair[1].style)]
        chosen = held_out[::120] + found[:: len(found) // SMOKE_ITEMS]
        drawn = {pair[1].hexcode for pair in chosen[:2]}  # these with all their styles, for edits
        found = chosen + [pair for pair in found if pair[1].hexcode in drawn and pair not in chosen]
    start = time.monotonic()
    items = [item for _, item in found]
    partial = options.work / "pictures.part"
    render_all([archive for archive, _ in found], items, partial, os.cpu_count() or 1)
    (options.work / "items.json").write_text(json.dumps([vars(item) for item in items]))
    partial.rename(options.work / "pictures.npy")
    log.info("rendered %d images in %.0f s", len(items), time.monotonic() - start)


def _dataset(work: Path) -> tuple[np.ndarray, list, list[int]]:
    from .collect import Item

    items = [Item(**entry) for entry in json.loads((work / "items.json").read_text())]
    held_out = [row for row, item in enumerate(items) if is_held_out(item.hexcode, item.style)]
    return np.load(work / "pictures.npy", mmap_mode="r"), items, held_out


def autoencoder_stage(options: Options) -> None:
    """Train the autoencoder, save it, and log its PSNR on held-out images."""
    from . import autoencoder as ae

    pictures, items, held_out = _dataset(options.work)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = sorted(set(range(len(items))) - set(held_out))
    train = torch.from_numpy(pictures[rows]).to(device)
    test = torch.from_numpy(pictures[held_out]).to(device)
    batch = 4 if options.smoke else 128
    try:
        model = ae.train_autoencoder(train, options.autoencoder_seconds, batch, not options.smoke)
    except Exception:
        if options.smoke:
            raise
        log.exception("training the autoencoder with torch.compile failed; training it without")
        model = ae.train_autoencoder(train, options.autoencoder_seconds, batch, False)
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    factors = ae.fit_preview_factors(model, train[:: max(1, len(train) // 256)])
    ae.save_autoencoder(model, factors, options.autoencoder)
    log.info("autoencoder held-out PSNR %.2f dB", ae.measure_psnr(model, test[:128]))


def family_stage(options: Options, family: str, deadline: float) -> None:
    """Train the transformer of one family until the deadline (`time.time()`)."""
    from .family import train_family
    from .plan import plan_for

    pictures, items, held_out = _dataset(options.work)
    plan = plan_for(family, options.smoke)
    train_family(
        family, pictures, items, held_out, options.autoencoder, deadline, options.work, plan, options.span
    )


def start_stage(options: Options, stage: str, gpu: int, deadline: float) -> subprocess.Popen[bytes]:
    """Start one stage of the training in a separate process on one GPU, with its own log file."""
    command = [sys.executable, str(PROGRAM), "train", "--stage", stage]
    command += [
        "--archive",
        *map(str, options.archives),
        "--work",
        str(options.work),
        "--deadline",
        str(deadline),
    ]
    command += ["--autoencoder-seconds", str(options.autoencoder_seconds)]
    command += ["--span", *map(str, options.span)] + ["--smoke"] * options.smoke
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    with open(options.work / f"{stage}.log", "wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait_for(options: Options, running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait for the processes of all stages.

    If a process fails, terminate the others and raise an error with the end of the failed process's log.
    """
    while running:
        for stage, process in list(running.items()):
            code = process.poll()
            if code is not None:
                del running[stage]
            if code:
                for other in running.values():
                    other.terminate()
                tail = (options.work / f"{stage}.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"stage {stage} ended with code {code}. Its log ends:\n{tail}")
        time.sleep(0.5)


def run_all(options: Options, families: list[str], seconds: float) -> None:
    """Render the images, then train the autoencoder and the transformers, in `seconds` altogether.

    With several GPUs, the families are trained in parallel, and all of them start together with the
    autoencoder. With one GPU, the families are trained one after the other, and only the first family starts
    together with the autoencoder. A family that starts with the autoencoder prepares its network, then waits
    for the autoencoder's file.
    """
    begun, gpus = time.time(), max(1, torch.cuda.device_count())
    end = begun + seconds - FINAL_SECONDS
    if not (options.work / "pictures.npy").exists():
        wait_for(options, {"render": start_stage(options, "render", 0, end)})
    running = {}
    if not options.autoencoder.exists():
        running["autoencoder"] = start_stage(options, "autoencoder", 0, end)
    if gpus > 1:
        running |= {name: start_stage(options, name, gpu % gpus, end) for gpu, name in enumerate(families)}
        wait_for(options, running)
        return
    first = begun + options.autoencoder_seconds * len(running)
    for turn, name in enumerate(families, start=1):
        deadline = first + (end - first) * turn / len(families)
        wait_for(options, running | {name: start_stage(options, name, 0, deadline)})
        running = {}


def main() -> None:
    """Read the command line and run the whole training or one stage of it."""
    parser = argparse.ArgumentParser(
        prog="training train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--archive",
        type=Path,
        nargs="+",
        required=True,
        help="archives of images, as `collect` and `clipart` write",
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for rendered images, logs and weights"
    )
    parser.add_argument(
        "--seconds", type=float, default=1380.0, help="time limit for the whole run, in seconds"
    )
    parser.add_argument(
        "--families", default="sd3,lumina2", help=f"comma-separated, from {', '.join(FAMILY_NAMES)}"
    )
    parser.add_argument("--autoencoder", type=Path, help="use this trained autoencoder file")
    parser.add_argument("--autoencoder-seconds", type=float, default=200.0)
    parser.add_argument(
        "--span",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        help="start and end of the part of the plan to train, 0 to 1",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="quick test: few images, tiny batches, no compilation"
    )
    parser.add_argument("--stage", choices=("all", "render", "autoencoder", *FAMILY_NAMES), default="all")
    parser.add_argument(
        "--deadline", type=float, default=0.0, help="time (as time.time()) at which a stage ends"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
    options = Options(
        tuple(arguments.archive),
        arguments.work,
        arguments.smoke,
        arguments.autoencoder_seconds,
        tuple(arguments.span),
    )
    if arguments.stage == "all":
        options.work.mkdir(parents=True, exist_ok=True)
        if arguments.autoencoder:
            shutil.copyfile(arguments.autoencoder, options.autoencoder)
        run_all(options, arguments.families.split(","), arguments.seconds)
    elif arguments.stage == "render":
        render_stage(options)
    elif arguments.stage == "autoencoder":
        autoencoder_stage(options)
    else:
        family_stage(options, arguments.stage, arguments.deadline)
