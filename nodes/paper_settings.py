"""RASPaperSettings: the paper's method, for the nodes that sample with RAS."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..ras_core.config import MIN_RATIO, Metric, PaperSettings, parse_step_list
from .checks import CheckedNode
from .settings import CATEGORY, PaperType


class RASPaperSettings(CheckedNode):
    """-> RAS_PAPER, which replaces the multirate method by the paper's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASPaperSettings",
            display_name="RAS Paper Settings",
            category=CATEGORY,
            description="Selects regions by the paper's method instead of multirate. It does not correct "
            "skipped regions, so set error_reset_every of the sampling node to 4 to 6 to keep their errors "
            "from growing.",
            inputs=[*_ranking_inputs(), *_schedule_inputs()],
            outputs=[
                PaperType.Output(
                    display_name="paper",
                    tooltip="For the input paper of RAS Patch Model, RAS KSampler or RAS Compare.",
                )
            ],
        )

    @classmethod
    def check_together(cls, inputs) -> None:
        paper_settings(**{name: value for name, value in inputs.items() if value is not None})

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        cls.check(**inputs)
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
            tooltip="How regions are ranked: by std (the paper's choice) or l2norm of the predicted noise. "
            "random selects regions at random, as a baseline to compare with.",
        ),
        io.Float.Input(
            "high_ratio", default=1.0, min=0.0, max=1.0, step=0.05,
            tooltip="Expert. Of the regions that a step skips, the share with the highest values of the "
            "metric; the others are those with the lowest values. 1: only high values are skipped.",
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
            tooltip="Expert. Over the regional steps, the share of the image that is computed changes "
            f"linearly from sample_ratio to this value, at least {MIN_RATIO}. 0 keeps the share constant.",
        ),
        io.String.Input(
            "error_reset_steps", default="",
            tooltip="Steps that compute the whole image (dense), counted from 0, for example 12,20. A list "
            "that is not empty replaces error_reset_every of the sampling node.",
        ),
    ]  # fmt: skip
