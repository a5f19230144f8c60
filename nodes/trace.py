"""RASTrace: the trace of a run of a patched model in another sampler node."""

from __future__ import annotations

from comfy_api.latest import io

from ..ras_core.host.patch import trace_of
from .settings import CATEGORY, TraceType


class RASTrace(io.ComfyNode):
    """Patched MODEL and the sampler's LATENT -> the same LATENT and the run's RAS_TRACE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASTrace",
            display_name="RAS Trace",
            category=CATEGORY,
            description="Outputs the trace of the run that made the latent, with a model from RAS Patch "
            "Model. The latent passes through, so that this node runs after the sampler.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model from RAS Patch Model that is also connected to the sampler."
                ),
                io.Latent.Input("latent", tooltip="The sampler's output; it passes through unchanged."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The latent, unchanged."),
                TraceType.Output(
                    display_name="trace", tooltip="What each step computed, for RAS Mask Preview."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        return io.NodeOutput(latent, trace_of(model, latent))
