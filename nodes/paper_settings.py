"""RASPaperSettings: the paper's method, for the nodes that sample with RAS."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..ras_core.config import MIN_RATIO, Metric, PaperSettings, parse_step_list
from .settings import CATEGORY, PaperType


class RASPaperSettings(io.ComfyNode):
    """-> RAS_PAPER, which replaces the multirate method by the paper's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASPaperSettings",
            display_name="RAS Paper Settings",
            category=CATEGORY,
            description="Selects regions by the paper's method instead of the multirate method. It has no "
            "corrections, so set error_reset_every of the sampling node to 4 to 6 to keep skipped regions "
            "from drifting.",
            inputs=[*_ranking_inputs(), *_schedule_inputs()],
            outputs=[
                PaperType.Output(
                    display_name="paper",
                    tooltip="For the input paper of RAS Patch Model, RAS KSampler or RAS Compare.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, metric=None, high_ratio=None, starvation_scale=None, ratio_end=None, error_reset_steps=None
    ) -> bool:
        """Refuse invalid values before the prompt runs; values that other nodes provide are None here.

        ComfyUI does not check the inputs that are parameters of this function. It shows a returned text once
        for each of them, but an exception only once.
        """
        given = {
            "metric": metric, "high_ratio": high_ratio, "starvation_scale": starvation_scale,
            "ratio_end": ratio_end, "error_reset_steps": error_reset_steps,
        }  # fmt: skip
        paper_settings(**{name: value for name, value in given.items() if value is not None})
        return True

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return io.NodeOutput(paper_settings(**inputs))


def paper_settings(error_reset_steps: str = "", **inputs: Any) -> PaperSettings:
    """The settings from the values of the node's inputs.

    Raises:
        RASError: a value that cannot be used.
    """
    return PaperSettings(**inputs, error_reset_steps=parse_step_list(error_reset_steps))


def _ranking_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "metric", options=list(get_args(Metric)), default="std",
            tooltip="How regions are ranked: by std (the paper's) or l2norm of the predicted noise. random "
            "is a baseline to compare with.",
        ),
        io.Float.Input(
            "high_ratio", default=1.0, min=0.0, max=1.0, step=0.05,
            tooltip="Expert. Share of the skipped regions taken from the high end of the metric; the rest "
            "comes from the low end. 1: only regions with a high metric are skipped.",
        ),
        io.Float.Input(
            "starvation_scale", default=0.1, min=0.0, max=10.0, step=0.01,
            tooltip="Expert. How strongly a region that was skipped often is favoured. 0: not at all.",
        ),
    ]  # fmt: skip


def _schedule_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "ratio_end", default=0.0, min=0.0, max=1.0, step=0.01,
            tooltip="Expert. Over the regional steps the ratio changes linearly from sample_ratio to this "
            f"value. 0 keeps it constant; otherwise at least {MIN_RATIO}.",
        ),
        io.String.Input(
            "error_reset_steps", default="",
            tooltip="A list of dense steps, counted from 0, for example 12,20. When not empty, they "
            "replace error_reset_every of the sampling node.",
        ),
    ]  # fmt: skip
