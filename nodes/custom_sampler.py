"""RASSampler: a sampler with a separate step size for each region, for ComfyUI's custom sampling nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..ras_core.host.samplers import SOLVERS, multirate_sampler
from .checks import CheckedNode
from .settings import CATEGORY, found_by


class RASSampler(CheckedNode):
    """Outputs a SAMPLER that integrates each region of the image with its own step size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASSampler",
            display_name="RAS Multirate Sampler",
            category=CATEGORY,
            **found_by("dpmpp_2m", "euler", "ab2", "Adams-Bashforth"),
            description="A sampler for SamplerCustom and SamplerCustomAdvanced. While RAS skips a region, "
            "the model's last output for this region is reused. When the region is computed again, this "
            "sampler corrects the error that the reuse has caused. Use this sampler with a model from RAS "
            "Patch Model; with other models it is the ordinary dpmpp_2m, euler or ab2 (Adams-Bashforth).",
            inputs=[
                io.Combo.Input(
                    "order", options=list(SOLVERS), default="dpmpp_2m",
                    tooltip="How steps are integrated. ab2 is the best method on the noise levels of RAS "
                    "Scheduler: its results are closest to those of runs with many steps. dpmpp_2m and euler "
                    "are ComfyUI's methods.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="The sampler, for a custom sampling "
            "node.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, order: str) -> io.NodeOutput:
        cls.check(order=order)
        return io.NodeOutput(multirate_sampler(order))
