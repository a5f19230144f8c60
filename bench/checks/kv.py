"""Compare the settings of `kv_cache`: one row per setting, with the latent's error, the cache's bytes,
seconds and peak memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.paths import OUTPUT
from ..common.progress import say
from ..common.results import write_json
from ..common.setup import machine, pick_device, start

KV_FORMATS = ("gpu", "fp8", "cpu", "off")
TOLERANCE = {"cpu": 1e-3, "fp8": 0.2}
"""Allowed relative L2 error of the latent, against a run with kv_cache "gpu". The limit for "fp8" is loose:
with random weights, rounding to fp8 soon changes which tokens are selected, so the error says little."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 if every row's error is within its limit."""
    parser = argparse.ArgumentParser(prog="bench kv")
    parser.add_argument(
        "--families", default="sd3_medium,sd35_medium,lumina2,flux_dev", help="comma-separated list"
    )
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument(
        "--tiny", action="store_true", help="use tiny networks; without a GPU, run on the CPU"
    )
    parser.add_argument("--out", type=Path, default=OUTPUT / "kv_check.json")
    options = parser.parse_args(argv)
    start(pick_device("auto" if options.tiny else "cuda"))
    import torch

    from ..common.shapes import SHAPES

    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name in options.families.split(","):
            shape = SHAPES[name].tiny() if options.tiny else SHAPES[name]
            for row in measured(shape, options.pixels, options.ratio):
                rows.append(row)
                say(" ".join(f"{key} {value}" for key, value in row.items()))
    result = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "ratio": options.ratio, "rows": rows}
    write_json(options.out, result)
    return 0 if all(row["held"] for row in rows) else 1


def measured(shape: Any, pixels: int, ratio: float) -> Iterator[dict[str, Any]]:
    """One row per setting in KV_FORMATS. A dense run comes first, to warm up; then each setting has two runs:
    the first measures memory, the second measures time.
    """

    import comfy.model_management

    from ..common.timing import Peak
    from ..speed.cases import Case, Variant
    from ..speed.run import Bench

    device = comfy.model_management.get_torch_device()
    bench = Bench(Case(shape.name, pixels), shape, device, pixels)
    bench.warm_up()
    expected = None
    for format_name in KV_FORMATS:
        variant, peak = replace(Variant("ras", ratio), kv_cache=format_name), Peak(device)
        latent, trace = bench.latent_of(variant)
        memory = peak.read()
        again, timed = bench.latent_of(variant)
        expected = latent if expected is None else expected
        error, repeat = distance(latent, expected), distance(again, latent)
        regional = [e.seconds for e in timed.evaluations[1:] if e.kind.value == "regional"]
        yield {
            "family": shape.name, "kv_cache": format_name, "error": error, "repeat_error": repeat,
            "held": error <= TOLERANCE.get(format_name, 1e9) and repeat <= 1e-3 and not timed.notes,
            "kv_bytes": trace.kv_bytes, "peak": memory["allocated"], "before": memory["before"],
            "seconds": timed.seconds, "regional_step_seconds": sum(regional) / max(len(regional), 1),
            "notes": list(timed.notes),
        }  # fmt: skip
    bench.close()


def distance(a: Any, b: Any) -> float:
    """Relative L2 error of latent `a` against latent `b`."""
    return float((a - b).norm() / b.norm())
