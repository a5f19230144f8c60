"""Measure the reference code (microsoft/RAS) as rows for the results of the speed program, `bench speed`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.paths import command as own_command
from ..common.timing import Clock
from ..speed.cases import Variant, own_dense
from ..speed.measured import Measured
from ..speed.run import Bench, row_of
from .job import Job, diffusers_config

START = 20
"""Estimated seconds to load the libraries and build the network. With less time left, no process is
started."""

GRACE = 60
"""Extra seconds in which the reference's process may start and end, added to the time limit of the runs."""


def reference_rows(
    bench: Bench, dense: Measured, variants: Sequence[Variant], checkout: Path, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """One row of results for each variant of the reference. A separate process runs and times the variants.
    Before this call, call `bench.close()`, which frees the network of the present process.

    Args:
        bench: the case, after `close`.
        dense: measurements of ComfyUI's dense run.
        variants: the variants to run, diffusers' dense pipeline first.
        checkout: folder with microsoft/RAS.
        repeats: number of timed runs of each variant.
        seconds: time limit for all variants together.
    """
    found = [Measured(each, lambda seed: None, Clock(bench.device)) for each in variants]
    report, error = {}, "no time left"
    if seconds > START:
        report, error = _ask(job_of(bench, variants, checkout, repeats, seconds), seconds)
    for each, figures in zip(found, report.get("variants", [{"error": error}] * len(found)), strict=True):
        for name, value in figures.items():
            setattr(each, name, value)
    about = {key: report[key] for key in ("diffusers", "parameters") if key in report}
    by_variant = {each.variant: each for each in found}
    return [
        row_of(bench, each, dense, by_variant[own_dense(each.variant, variants)]) | about for each in found
    ]


def job_of(bench: Bench, variants: Sequence[Variant], checkout: Path, repeats: int, seconds: float) -> Job:
    """The job with which a separate process runs the reference code on the case of `bench`. That process does
    not import ComfyUI.
    """
    shape = bench.shape
    family = "sd3" if shape.model_class == "SD3" else "lumina_next"
    return Job(
        checkout=str(checkout), family=family, network=diffusers_config(family, shape.unet_config),
        variants=tuple(variants), dtype=str(shape.dtype).removeprefix("torch."), device=bench.device.type,
        pixels=bench.pixels, batch=bench.case.batch, steps=bench.steps,
        text=(shape.text_rows[0], shape.text_width, shape.pooled_width), repeats=repeats, seconds=seconds,
    )  # fmt: skip


def _ask(job: Job, seconds: float) -> tuple[dict[str, Any], str]:
    """Run the job in a new process. Returns its report and no error, or an empty report and the error."""
    limit = None if seconds == float("inf") else max(seconds, 0) + GRACE
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = own_command("reference-worker", str(out))
        try:
            done = subprocess.run(
                command, input=job.dumps(), text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {}, f"the reference's process took more than {limit:.0f} s"
        if done.returncode or not out.is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return {}, f"the reference's process ended with status {done.returncode}: {last}"[:500]
        return json.loads(out.read_text(encoding="utf-8")), ""
