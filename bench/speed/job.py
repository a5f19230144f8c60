"""A job for a process that runs ComfyUI: one case, and the flags to start ComfyUI with. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from .cases import Case, Variant

Action = Literal["make", "measure", "profile"]


@dataclass(frozen=True)
class SpeedJob:
    """What one process has to do for one case.

    Attributes:
        action: "make" writes files with random weights; "measure" and "profile" load these files and sample.
        case: the case.
        tiny: whether to use a tiny network of the case's family, and images of TINY_PIXELS.
        device: "cuda", "cpu" or "auto".
        flags: ComfyUI's command-line flags.
        threads: number of CPU threads for torch; 0 for torch's default.
        steps: sampling steps per run.
        repeats: number of timed runs of each variant.
        seconds: time limit of the job; infinite if there is none.
        folder: the folder of the files.
        files: names of the files in `folder`, by kind of file: "default", "lora" or a quantised layout. The
            dictionary is empty if the process builds the network itself.
        variants: the variants to run, grouped by weights, with the dense variant first in each group.
        reference: folder with a checkout of microsoft/RAS, whose code is also measured; if "", that code is
            not measured.
        ratios: shares of active tokens with which the reference runs.
    """

    action: Action
    case: Case
    tiny: bool
    device: str
    flags: tuple[str, ...]
    threads: int
    steps: int
    repeats: int
    seconds: float
    folder: str
    files: dict[str, str]
    variants: tuple[Variant, ...] = ()
    reference: str = ""
    ratios: tuple[float, ...] = field(default=())

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> SpeedJob:
        found = json.loads(text)
        found["case"] = Case(**found["case"])
        found["variants"] = tuple(Variant(**each) for each in found["variants"])
        for name in ("flags", "ratios"):
            found[name] = tuple(found[name])
        return cls(**found)


def file_of(weights: str) -> str:
    """The kind of file from which these weights (one of WEIGHTS) are loaded."""
    return "default" if weights in ("fp8", "lora") else weights


def files_for(case: Case, weights: tuple[str, ...]) -> dict[str, str]:
    """Names of the files that these kinds of weights are loaded from, by kind of file."""
    kinds = {file_of(each) for each in weights} | ({"lora"} & set(weights))
    return {kind: f"{case.shape}_{kind}.safetensors" for kind in sorted(kinds)}
