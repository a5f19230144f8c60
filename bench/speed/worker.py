"""A process of the speed program: starts ComfyUI as a user would, then does one job."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.hosting import has_dynamic_vram, start_as_main
from ..common.progress import say
from .job import SpeedJob, file_of

if TYPE_CHECKING:
    from .run import Bench  # not imported at run time: it imports torch, but ComfyUI must start first

TINY_PIXELS = 128
FP8 = "fp8_e4m3fn"
LORA_STRENGTH = 0.7


def main(argv: list[str] | None = None) -> int:
    """Read a job from standard input, do it, and write a report to the file that the first argument names."""
    out = Path((argv or sys.argv[1:])[0])
    job = SpeedJob.loads(sys.stdin.read())
    started = time.perf_counter()
    start_as_main(job.flags, job.threads)
    from ..common.setup import machine

    report: dict[str, Any] = {"machine": machine(), "dynamic_vram": has_dynamic_vram()}
    report["start_seconds"] = time.perf_counter() - started
    work = {"make": make, "measure": measure, "profile": profile}[job.action]
    for found in work(job, lambda: job.seconds - (time.perf_counter() - started)):
        for name, value in found.items():
            report[name] = [*report.get(name, []), *value] if isinstance(value, list) else value
        out.write_text(json.dumps(report), encoding="utf-8")
    return 0


def make(job: SpeedJob, left: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Write the job's files."""
    import comfy.model_management

    from ..common.checkpoints import make_files

    started, folder = time.perf_counter(), Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / name for kind, name in job.files.items()}
    failed = make_files(shape_of(job), paths, comfy.model_management.get_torch_device())
    sizes = {kind: path.stat().st_size for kind, path in paths.items() if path.exists()}
    total = comfy.model_management.get_total_memory(comfy.model_management.get_torch_device())
    seconds = time.perf_counter() - started
    yield {"failed": failed, "sizes": sizes, "make_seconds": seconds, "total": total}


def measure(job: SpeedJob, left: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Measure the case with each kind of weights in turn. Yields the result rows of each kind as soon as they
    are measured. After those of unchanged weights, it yields the rows of the reference code, if the job has
    it.
    """
    from ..common.shapes import free
    from .run import measure_case, too_many_graphs

    profile = None  # the same FLOPs for all kinds of weights, since the format does not change their number
    for weights in dict.fromkeys(variant.weights for variant in job.variants):
        group = [variant for variant in job.variants if variant.weights == weights]
        if warning := too_many_graphs(group, len(set(shape_of(job).text_rows))):
            say(warning)
        try:
            bench = open_bench(job, weights)
        except Exception as error:
            free()
            about = {"case": job.case.key, "variant": group[0].key, "weights": weights}
            yield {"rows": [about | {"error": f"{type(error).__name__}: {error}"[:500]}]}
            continue
        bench.profile = profile = profile or bench.profile
        found = [bench.measured(each) for each in group]
        rows = measure_case(bench, found, job.repeats, left)
        dense = found[0].figures_only()
        del found
        bench.close()
        yield {"rows": rows}
        if weights == "default" and job.reference:
            yield {"rows": reference(job, bench, dense, left)}
        del bench
        free()


def reference(job: SpeedJob, bench: Bench, dense: Any, left: Callable[[], float]) -> list[dict[str, Any]]:
    """Measure the reference code on this case and return its rows. Call it after ComfyUI's variants were
    measured.
    """
    import comfy.model_management

    from ..reference.rows import reference_rows
    from .cases import reference_variants

    on_gpu = comfy.model_management.get_torch_device().type == "cuda"
    asked = reference_variants(job.case, job.ratios, on_gpu)
    return reference_rows(bench, dense, asked, Path(job.reference), job.repeats, left()) if asked else []


def profile(job: SpeedJob, left: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Profile the case's variants that have unchanged weights, and yield the profiles."""
    from ..profile.run import profiles

    bench = open_bench(job, "default")
    yield {"profiles": profiles(bench, [each for each in job.variants if each.weights == "default"])}
    bench.close()


def shape_of(job: SpeedJob) -> Any:
    from ..common.shapes import SHAPES

    shape = SHAPES[job.case.shape]
    if job.tiny:
        shape = shape.tiny()
    elif job.case.blocks:
        shape = shape.shallow(job.case.blocks)
    return shape.as_detected() if job.files else shape


def open_bench(job: SpeedJob, weights: str) -> Bench:
    """Prepare the job's case to run with one kind of weights. If the job has files, ComfyUI's loader nodes
    load the case's network from them; otherwise the network is built in this process.
    """
    import comfy.model_management
    import torch

    from ...ras_core.method import small_images
    from .run import Bench

    if job.tiny:
        small_images.LEAST_TOKENS = 0  # so that tiny images have regional steps, as those of full size have
    device = comfy.model_management.get_torch_device()
    pixels = TINY_PIXELS if job.tiny else job.case.pixels
    with torch.inference_mode():  # as ComfyUI does when it runs loader nodes
        model = load(job, weights) if job.files else None
    return Bench(job.case, shape_of(job), device, pixels, job.steps, model)


def load(job: SpeedJob, weights: str) -> Any:
    """Load a MODEL with the node UNETLoader; if `weights` is "lora", LoraLoaderModelOnly then adds a LoRA."""
    import folder_paths

    import nodes

    for kind in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, job.folder)
    name = job.files[file_of(weights)]
    model = nodes.UNETLoader().load_unet(name, FP8 if weights == "fp8" else "default")[0]
    if weights == "lora":
        model = nodes.LoraLoaderModelOnly().load_lora_model_only(model, job.files["lora"], LORA_STRENGTH)[0]
    return model
