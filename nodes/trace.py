"""RASTrace: the trace of a run of a patched model in another sampler node."""

from __future__ import annotations

from comfy_api.latest import io

from ..ras_core.host.patch import last_trace
from .checks import CheckedNode
from .settings import CATEGORY, TraceType


class RASTrace(CheckedNode):
    """Patched MODEL and the sampler's LATENT -> the same LATENT and the run's RAS_TRACE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASTrace",
            display_name="RAS Trace",
            category=CATEGORY,
            description="Outputs the trace of the last finished run of a model from RAS Patch Model. The "
            "latent passes through, so that this node runs after the sampler.",
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
        cls.check(model=model)
        return io.NodeOutput(latent, last_trace(model))
