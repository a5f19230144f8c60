"""RASSampler: the multirate integrator for ComfyUI's custom sampling nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..ras_core.host.samplers import SOLVERS, multirate_sampler
from .checks import CheckedNode
from .settings import CATEGORY


class RASSampler(CheckedNode):
    """-> SAMPLER that integrates each region with its own step size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASSampler",
            display_name="RAS Multirate Sampler",
            category=CATEGORY,
            description="A sampler for SamplerCustom and SamplerCustomAdvanced that corrects skipped "
            "regions when they are computed again. Use it with a model from RAS Patch Model; with other "
            "models it equals dpmpp_2m, euler or ab2 (Adams-Bashforth).",
            inputs=[
                io.Combo.Input(
                    "order", options=list(SOLVERS), default="dpmpp_2m",
                    tooltip="dpmpp_2m and ab2: second order, better up to a speed-up of about 2.7. In runs "
                    "of few steps that all compute the whole image, ab2 is closer to the result of many "
                    "steps than dpmpp_2m. euler: first order, worth trying above a speed-up of about 2.7.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For a custom sampling node.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, order: str) -> io.NodeOutput:
        cls.check(order=order)
        return io.NodeOutput(multirate_sampler(order))
