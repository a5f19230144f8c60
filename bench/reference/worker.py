"""The process that runs the reference code: reads a job from standard input, writes a report to a file."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..common.timing import Clock
from ..speed.measured import Measured, take_turns
from .job import Job
from .pipelines import Reference, load_reference, offer_flash_attention


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    (out,) = sys.argv[1:] if argv is None else argv
    job = Job.loads(sys.stdin.read())
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # the reference prints to standard output
        report = measure(job, lambda: job.seconds - (time.perf_counter() - started))
    Path(out).write_text(json.dumps(report), encoding="utf-8")
    return 0


def measure(job: Job, left: Any) -> dict[str, Any]:
    """Measure each variant; returns the figures in the format that `reference_rows` reads."""
    load_reference(Path(job.checkout))
    reference = Reference(job)
    # Only now, because libraries check for the package flash-attn when they are imported.
    offer_flash_attention()
    found = []
    for variant in job.variants:
        clock = Clock(reference.device)
        counts = reference.counts(variant)
        found.append(
            Measured(variant, reference.run(variant, clock), clock, reference.restore, counts=counts)
        )
    take_turns(found, reference.device, job.repeats, left)
    import diffusers

    names = ("seconds", "node_seconds", "steps", "warm_up", "memory", "counts", "error")
    return {
        "diffusers": diffusers.__version__,
        "parameters": sum(p.numel() for p in reference.network.parameters()),
        "variants": [{name: getattr(each, name) for name in names} for each in found],
    }
