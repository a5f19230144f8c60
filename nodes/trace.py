"""RASTrace: outputs the trace of a run. The run may be that of any sampler node, if the sampler node's model
comes from RAS Patch Model.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..ras_core.host.patch import trace_of
from .checks import CheckedNode
from .settings import CATEGORY, TraceType, found_by


class RASTrace(CheckedNode):
    """Takes a MODEL from RASPatchModel and the sampler's LATENT; outputs this LATENT and RAS_TRACE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASTrace",
            display_name="RAS Trace",
            category=CATEGORY,
            **found_by("steps", "region"),
            description="Outputs the trace (what each step computed) of the run that made the latent, with a "
            "model from RAS Patch Model. The latent passes through unchanged. If the model has no RAS, for "
            "example because RAS Patch Model is bypassed, the trace is empty and says so.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model from RAS Patch Model that is also connected to the sampler."
                ),
                io.Latent.Input("latent", tooltip="The sampler's output, which passes through unchanged."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The unchanged latent."),
                TraceType.Output(
                    display_name="trace",
                    tooltip="The trace of the run (what each step computed), for RAS Mask Preview.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        cls.check(model=model)
        return io.NodeOutput(latent, trace_of(model, latent))
