"""A job for a process that runs ComfyUI: one case, with one way to start ComfyUI. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from .cases import Case, Variant

Action = Literal["make", "measure", "profile"]


@dataclass(frozen=True)
class SpeedJob:
    """One case for one process.

    Attributes:
        action: "make" writes files with random weights, "measure" and "profile" load and run them.
        case: the case.
        tiny: a tiny network at TINY_PIXELS.
        device: "cuda" or "cpu".
        flags: ComfyUI's command-line flags.
        threads: torch's CPU threads; 0 for torch's default.
        steps: sampling steps per run.
        repeats: number of timed runs.
        seconds: time limit; infinite for none.
        folder: where the files are.
        files: file names in that folder by kind: "default", "lora" or a quantised layout. Empty if the
            process builds the network itself.
        variants: the variants to run, grouped by weights, dense first in each group.
        reference: a checkout of microsoft/RAS, or "".
        ratios: shares of active tokens for the reference.
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
    """The kind of file that these weights are loaded from."""
    return "default" if weights in ("fp8", "lora") else weights


def files_for(case: Case, weights: tuple[str, ...]) -> dict[str, str]:
    """Names of the files that these weights need, by kind."""
    kinds = {file_of(each) for each in weights} | ({"lora"} & set(weights))
    return {kind: f"{case.shape}_{kind}.safetensors" for kind in sorted(kinds)}
