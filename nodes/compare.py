"""RASCompare: samples the same image without RAS (all steps dense), with RAS, and without RAS in fewer
steps that cost as much as the run with RAS, and compares these images.

The run in fewer steps is the best run without RAS at that cost. If the run with RAS has the noise levels of a
plan, so has the run in fewer steps: those of the best plan without regional steps. Otherwise, for example
with speed = custom, it has the sampler and the scheduler that the user chose.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..ras_core.config import Window
from ..ras_core.host.fewer_steps import FewerSteps
from ..ras_core.host.planned_model import has_ras, without_ras
from ..ras_core.render.comparison import Run, checked, comparison_image, difference, ssim
from ..ras_core.render.masks import summary_image
from .live import part_of_node
from .retired import ACCEPT_ALL, HIDDEN
from .sampler import sample_with_trace, sampler_inputs
from .settings import CATEGORY, CUSTOM, SettingsNode, chosen_settings, found_by, settings_inputs

RUNS = {"without": "without RAS", "with": "with RAS", "fewer": "without RAS, in fewer steps"}
"""By name: what the log says of a run. The names are those in web/words.js."""

SCHEDULER = (
    "How noise levels are spread over the steps. With a speed other than custom, the runs with RAS and in "
    "fewer steps ignore this input with euler and dpmpp_2m; the first run, without RAS, always uses it. "
    "With denoise below 1, this input still determines the first noise level of each run."
)
"""The tooltip of the input `scheduler`."""

logger = logging.getLogger(__name__)


class RASCompare(SettingsNode):
    """Takes the inputs of RASKSampler and a VAE; outputs the images, their difference and a summary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASCompare",
            display_name="RAS Compare",
            category=CATEGORY,
            **found_by("compare", "before after", "speed", "quality", "benchmark"),
            description="Samples the same image without RAS, with RAS, and without RAS in fewer steps that "
            "take as long as the run with RAS. A slider in the node compares the images; a line says how "
            "much faster RAS was and how close its image is. Use this node to find settings you like: "
            "connect it like KSampler, and copy its seed, cfg and sampler.",
            inputs=[
                *sampler_inputs(SCHEDULER),
                *settings_inputs(),
                io.Vae.Input("vae", tooltip="The VAE that decodes the latents of all runs."),
            ],
            outputs=[
                io.Image.Output(display_name="dense", tooltip="The image without RAS."),
                io.Image.Output(display_name="ras", tooltip="The image with RAS."),
                io.Image.Output(
                    display_name="difference", tooltip="The absolute difference of both images, times four."
                ),
                io.Image.Output(
                    display_name="comparison",
                    tooltip="The images and their difference, with times, PSNR and SSIM.",
                ),
                io.Image.Output(
                    display_name="summary", tooltip="What each step of the run with RAS computed."
                ),
                io.Image.Output(
                    display_name="fewer_steps",
                    tooltip="The image without RAS in fewer steps, which cost as much as the run with RAS.",
                ),
            ],
            hidden=[*HIDDEN],
            is_output_node=True,
            **ACCEPT_ALL,
        )

    @classmethod
    def execute(cls, vae, **inputs) -> io.NodeOutput:
        cls.refuse_in_prompt()
        chosen_settings(inputs)  # refuses wrong settings before minutes of sampling
        cls.check(vae=vae, **inputs)
        inputs["model"] = _without_settings(inputs["model"])
        _warm_up(inputs)
        dense = _run(vae, "without", _dense(inputs))
        ras = _run(vae, "with", {**inputs, "dense": dense.trace})
        fewer = _fewer_steps(vae, inputs, dense, ras)
        ras = _checked(ras, fewer, dense)
        shown = (
            dense.images,
            ras.images,
            difference(dense.images, ras.images),
            comparison_image(dense, ras, fewer),
            summary_image(ras.trace, ras.images),
            fewer.images,
        )
        slider = _slider(cls, dense, ras, fewer)
        outputs = [torch.from_numpy(image) for image in shown]
        return io.NodeOutput(*outputs, ui={"ras_compare": [slider], "ras": [ras.trace.as_dict()]})


def _without_settings(model):
    """The model without the settings of a RAS node before this one, which no run would use. Says so once,
    because `patch_model` would say it for each run.
    """
    if not has_ras(model):
        return model
    logger.info("Multirate RAS: RAS Compare: its own settings apply, not those of the RAS node before it.")
    return without_ras(model)


def _dense(inputs: dict) -> dict:
    """The inputs of the run without RAS, in which all steps are dense.

    Of PaperSettings, only `ratio_end` matters to such a run: unless it is 0, it makes steps regional.
    """
    paper = inputs.get("paper")
    dense = {"speed": CUSTOM, "plan": None, "sample_ratio": 1.0, **vars(Window())}
    return {**inputs, **dense, "paper": paper and replace(paper, ratio_end=0.0)}


def _warm_up(inputs: dict) -> None:
    """Sample one step, because the first run tunes kernels; the live view does not show it."""
    logger.info("Multirate RAS: RAS Compare: a warm-up of one step.")
    with part_of_node(0, len(RUNS)):
        sample_with_trace(**{**_dense(inputs), "steps": 1})


def _run(vae, name: str, inputs: dict) -> Run:
    """Sample and decode the run of this name in RUNS."""
    number = [*RUNS].index(name) + 1
    logger.info("Multirate RAS: RAS Compare: run %d of %d, %s.", number, len(RUNS), RUNS[name])
    with part_of_node(number, len(RUNS), name):
        latent, trace = sample_with_trace(**inputs)
    decoded = vae.decode(latent["samples"])
    images = decoded.reshape(-1, *decoded.shape[-3:]).float().cpu().numpy()
    return Run(np.clip(images, 0, 1), trace)


def _fewer_steps(vae, inputs: dict, dense: Run, ras: Run) -> Run:
    """The best run without RAS whose FLOPs are those of the run with RAS; `dense` if there is no such run."""
    steps = round(inputs["steps"] / max(ras.trace.expected_gain, 1.0))
    if not 1 <= steps < inputs["steps"]:
        logger.info("Multirate RAS: RAS Compare: no run in fewer steps, as RAS saved less than one step.")
        return dense
    if not ras.trace.levels:
        return _run(vae, "fewer", {**_dense(inputs), "steps": steps})
    settings = FewerSteps(inputs["speed"], inputs.get("plan"), steps=steps)
    return _run(vae, "fewer", {**inputs, "settings": settings})


def _checked(ras: Run, fewer: Run, dense: Run) -> Run:
    """The run with RAS, marked as disturbed if the time of the run in fewer steps shows it."""
    found = ras if fewer is dense else checked(ras, fewer)
    if found is not ras:
        logger.info(
            "Multirate RAS: RAS Compare: the runs with RAS and in fewer steps should take equally long, but "
            "took %.1f and %.1f s: the computer was busy, and measured speed-ups are unreliable.",
            ras.seconds, fewer.seconds,
        )  # fmt: skip
    return found


def _slider(cls, dense: Run, ras: Run, fewer: Run) -> dict:
    """The data that web/compare.js shows in the node: the first image of each run, and the figures."""
    images = {"dense": dense, "ras": ras, "fewer": fewer}
    files = {name: ui.PreviewImage(torch.from_numpy(run.images[:1]), cls=cls) for name, run in images.items()}
    return {
        "images": {name: dict(file.values[0]) for name, file in files.items()},
        "steps": {name: run.trace.n_steps for name, run in images.items()},
        "seconds": {name: run.seconds for name, run in images.items()},
        "speedup": None if ras.trace.is_disturbed else ras.trace.measured_gain,
        "expected": ras.trace.expected_gain,
        "accelerated": ras.trace.is_accelerated,
        "inpainting": ras.trace.is_inpainting,
        "reason": ras.trace.reason,
        "closeness": {name: ssim(dense.images[0], images[name].images[0]) for name in ("ras", "fewer")},
    }
