"""RASPaperSettings: selects the method of the RAS paper, for the nodes that sample with RAS."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..ras_core.config import MIN_RATIO, Metric, PaperSettings, parse_step_list
from .checks import CheckedNode
from .settings import ADVANCED, CATEGORY, PaperType, found_by


class RASPaperSettings(CheckedNode):
    """Outputs RAS_PAPER, which makes a node use the paper's method instead of multirate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASPaperSettings",
            display_name="RAS Paper Settings",
            category=CATEGORY,
            **found_by("region-adaptive sampling", "std", "l2norm"),
            description="Selects regions by the method of the RAS paper instead of multirate. The paper's "
            "method does not correct skipped regions, so their errors grow until the next dense step. To "
            "keep these errors small, set error_reset_every to a value from 4 to 6. That input is in the "
            "node to which you connect this node.",
            inputs=[*_ranking_inputs(), *_schedule_inputs()],
            outputs=[
                PaperType.Output(
                    display_name="paper",
                    tooltip="Connect this output to the paper input of RAS Patch Model, RAS KSampler or RAS "
                    "Compare.",
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
    """PaperSettings made from the values of the node's inputs.

    Raises:
        RASError: a value that cannot be used.
    """
    return PaperSettings(**inputs, error_reset_steps=parse_step_list(error_reset_steps))


def _ranking_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "metric", options=list(get_args(Metric)), default="std",
            tooltip="The measure by which regions are ranked. std: the standard deviation of the predicted "
            "noise, which is the paper's choice. l2norm: the L2 norm of the predicted noise. random: no "
            "measure; regions are selected at random, as a baseline to compare with.",
        ),
        io.Float.Input(
            "high_ratio", default=1.0, min=0.0, max=1.0, step=0.05, **ADVANCED,
            tooltip="Expert. A regional step skips regions from both ends of the ranking by the input "
            "metric. This value is the share of the skipped regions that come from the end with the high "
            "values; the others come from the low end. With 1, only regions with high values are skipped.",
        ),
        io.Float.Input(
            "starvation_scale", default=0.1, min=0.0, max=10.0, step=0.01, **ADVANCED,
            tooltip="Expert. How strongly the selection of the regions to compute prefers regions that were "
            "skipped often. 0: not at all.",
        ),
    ]  # fmt: skip


def _schedule_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "ratio_end", default=0.0, min=0.0, max=1.0, step=0.01, **ADVANCED,
            tooltip="Expert. The share of the image that a regional step computes changes linearly during "
            "the run, from sample_ratio at the first regional step to this value at the last regional "
            f"step. This value must be at least {MIN_RATIO}. 0 keeps the share at sample_ratio.",
        ),
        io.String.Input(
            "error_reset_steps", default="",
            tooltip="A list of the steps that are dense (compute the whole image), counted from 0, for "
            "example 12,20. (RAS Mask Preview and the live view count steps from 1: they show these two as "
            "13 and 21.) A list that is not empty replaces error_reset_every of the sampling node.",
        ),
    ]  # fmt: skip
