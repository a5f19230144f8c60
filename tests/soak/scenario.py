"""Describes one scenario by numbers and names, which are drawn from a seed and the scenario's number."""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random
from typing import Any

import comfy.samplers
from ras_pack.ras_core.kv.formats import AUTO, FORMATS
from support.families import FAMILIES

GUIDANCE = (
    *("rescale", "cfg_zero", "apg", "tcfg", "nag", "slg", "pag"),  # nodes that patch the model
    *("basic", "perp_neg", "dual_cfg", "dual_model"),  # guiders
)
PATCHES = (
    *("lora", "shift", "attention", "block", "unet_wrapper", "post_cfg", "object", "control"),
    *("lazy_cache", "easy_cache", "step_cache", "row_adder", "row_checker", "two_passes"),
)
PROMPTS = ("plain", "two", "masked", "area", "late", "early", "long", "hooked")
RAISING = ("callback", "interrupt", "module", "module_interrupt", "module_memory")
OF_CAPTURES = ("failing_capture", "broken_capture")
FAULTS = (*RAISING, "fill_memory", "update_memory", "nan", *OF_CAPTURES)
CAPTURABLE = [AUTO, *(name for name, each in FORMATS.items() if each.keeps_addresses)]
SPEEDS = ("1.5x", "2x", "2.5x", "3x")
SLOW = {"dpm_adaptive", "dpm_fast"}
"""Samplers that are never drawn, because they choose their own number of evaluations."""


@dataclass(frozen=True)
class Scenario:
    """One scenario: what is sampled, with which settings, and what else happens.

    Attributes:
        family: name of a family in `FAMILIES`, of which a tiny model is sampled.
        dtype: data type of the weights: "float32", "bfloat16" or "float16".
        size: height and width of the latent, in latent pixels.
        batch: number of images.
        sampler, scheduler, steps, denoise, cfg: as in ComfyUI's KSampler.
        guidance: "cfg", or one of GUIDANCE.
        patches: some of PATCHES and "ras", in the order in which they are applied to the model. "ras" stands
            for RAS itself.
        prompts: one of PROMPTS.
        latent: "empty" or "image".
        mask: kind of the latent's noise mask: None, "part", "soft" or "whole".
        priority: kind of the mask of regions that the selection favours: None, "half", "noise" or "zero".
        calls: which prompts share a call of the network: all ("together"), none ("split"), or all in some
            evaluations and none in the others ("switching").
        halves: whether the schedule is split between two sampler runs, as with two KSamplers (Advanced).
        settings: arguments of RASConfig, or {"speed": ...}. The value of the key "paper" holds the arguments
            of PaperSettings.
        tape: the stand-in for CUDA graphs, "frozen" or "late"; None to run without CUDA graphs.
        other: settings of RAS for another clone of the model, which is sampled between the first run and its
            repetition; or None.
        detour: what differs in a further run of the same model, which is made between the first run and its
            repetition: "size" or "batch"; None for no such run.
        unload: whether all models are unloaded between the first run and its repetition.
        fault: one of FAULTS, or None.
        at: number of the occasion at which the fault strikes, counted from 1.
    """

    family: str
    dtype: str
    size: tuple[int, int]
    batch: int
    sampler: str
    scheduler: str
    steps: int
    denoise: float
    cfg: float
    guidance: str
    patches: tuple[str, ...]
    prompts: str
    latent: str
    mask: str | None
    priority: str | None
    calls: str
    halves: bool
    settings: dict[str, Any]
    tape: str | None
    other: dict[str, Any] | None
    detour: str | None
    unload: bool
    fault: str | None
    at: int

    @classmethod
    def draw(cls, seed: int, number: int) -> Scenario:
        """Draw scenario `number` of a seed. Each value is drawn from a generator of its own. So if a version
        of ComfyUI has a different list of samplers, only the sampler of a scenario differs.
        """
        values = {name: choose(Random(f"{seed}/{number}/{name}")) for name, choose in _DRAWS.items()}
        if values["tape"]:  # captures need several regional steps, and rows at fixed addresses
            random = Random(f"{seed}/{number}/captures")
            values["steps"] = max(values["steps"], random.choice([8, 12]))
            values["settings"]["kv_cache"] = random.choice(CAPTURABLE)
        elif values["fault"] in OF_CAPTURES:
            values["fault"] = None
        return cls(**values)

    def describe(self) -> str:
        """The scenario in one line: its values without those that equal the most common value."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name}={value}" for name, value in values.items() if value != _PLAINEST.get(name))


def _family(random: Random) -> str:
    return random.choice(sorted(FAMILIES))


def _side(random: Random) -> int:
    return random.choice([8, 10, 12, 16, 20, random.randint(5, 22)])


def _sampler(random: Random) -> str:
    samplers = [name for name in comfy.samplers.KSampler.SAMPLERS if name not in SLOW]
    return random.choice(["euler", "dpmpp_2m", random.choice(samplers)])


def _steps(random: Random) -> int:
    return random.choice([random.randint(1, 5), random.randint(6, 12), random.randint(6, 12), 16])


def _patches(random: Random) -> tuple[str, ...]:
    chosen = random.sample(PATCHES, random.choice([0, 0, 1, 1, 2]))
    chosen.insert(random.randint(0, len(chosen)), "ras")
    return tuple(chosen)


def _paper(random: Random) -> dict[str, Any]:
    return {
        "metric": random.choice(["std", "l2norm", "random"]),
        "high_ratio": random.choice([1.0, 0.5, 0.0, random.random()]),
        "starvation_scale": random.choice([0.1, 0.0, 2.0, 10.0]),
        "ratio_end": random.choice([0.0, 0.0, 0.2, 0.9]),
        "error_reset_steps": random.choice([(), (), (3,), (2, 5, 400)]),
        "starvation": random.choice(["corrected", "reference"]),
    }


def _custom(random: Random) -> dict[str, Any]:
    settings = {
        "sample_ratio": random.choice([0.05, 0.125, 0.25, 0.5, 0.75, 0.9, 1.0, random.uniform(0.05, 1.0)]),
        "start_step": random.choice([0, 1, 2, 3, 4]),
        "end_step": random.choice([0, 0, 0, 7]),
        "error_reset_every": random.choice([0, 0, 1, 2, 4]),
        "kv_cache": random.choice([AUTO, "gpu", *FORMATS]),
    }
    if random.random() < 0.3:
        return {**settings, "paper": _paper(random)}
    more = {"corrections": 0.6, "continue_outputs": 0.2, "spread": 0.2}
    return settings | {name: random.random() < chance for name, chance in more.items()}


def _settings(random: Random) -> dict[str, Any]:
    return {"speed": random.choice(SPEEDS)} if random.random() < 0.25 else _custom(random)


def _rarely(chance: float, *values: Any) -> Any:
    """A function that draws the first value most of the time. With probability `chance`, it draws one of the
    other values.
    """
    return lambda random: random.choice(values[1:]) if random.random() < chance else values[0]


_DRAWS = {
    "family": _family,
    "dtype": _rarely(0.1, "float32", "bfloat16", "float16"),
    "size": lambda random: (_side(random), _side(random)),
    "batch": _rarely(0.3, 1, 2, 3),
    "sampler": _sampler,
    "scheduler": lambda random: random.choice(["simple", random.choice(comfy.samplers.KSampler.SCHEDULERS)]),
    "steps": _steps,
    "denoise": _rarely(0.2, 1.0, 0.6, 0.3, 0.02),
    "cfg": _rarely(0.3, 4.0, 1.0, 0.0, 12.0),
    "guidance": _rarely(0.35, "cfg", *GUIDANCE),
    "patches": _patches,
    "prompts": _rarely(0.4, *PROMPTS),
    "latent": _rarely(0.25, "empty", "image"),
    "mask": _rarely(0.1, None, "part", "soft", "whole"),
    "priority": _rarely(0.25, None, "half", "noise", "zero"),
    "calls": _rarely(0.3, "together", "split", "switching"),
    "halves": _rarely(0.15, False, True),
    "settings": _settings,
    "tape": _rarely(0.4, None, "frozen", "late"),
    "other": lambda random: _settings(random) if random.random() < 0.2 else None,
    "detour": _rarely(0.3, None, "size", "batch"),
    "unload": _rarely(0.3, False, True),
    "fault": _rarely(0.6, None, *FAULTS),
    "at": lambda random: random.choice([1, random.randint(1, 12), random.randint(1, 400)]),
}
_PLAINEST = {
    **{"dtype": "float32", "batch": 1, "denoise": 1.0, "cfg": 4.0, "guidance": "cfg", "patches": ("ras",)},
    **{"prompts": "plain", "latent": "empty", "mask": None, "priority": None, "calls": "together"},
    **{"halves": False, "tape": None, "other": None, "detour": None, "unload": False, "fault": None},
}
