"""The page docs/compatibility.md, made from the declarations."""

from __future__ import annotations

from support.comfy import ROOT

from .rows import CONFIG, NEAR, Group, Row, percent
from .table import GROUPS

PATH = ROOT / "docs" / "compatibility.md"

FAMILY_NAMES = {
    "sd3": "SD3", "sd35_large": "SD3.5 large", "sd35_medium": "SD3.5 medium", "lumina2": "Lumina 2",
    "z_image": "Z-Image", "lumina_next": "Lumina-Next", "flux": "Flux", "flux_fill": "Flux Fill",
    "flux_kontext": "Flux Kontext",
}  # fmt: skip
USUAL = tuple(name for name in FAMILY_NAMES if name not in ("flux_fill", "flux_kontext"))

START = """# What Multirate RAS works with

<!-- Written by `python -m dev compatibility`. To change this page, edit the rows in tests/compatibility/. -->

Each row of the tables below is one combination of RAS with something else in a workflow. The tests of this
pack run every row with ComfyUI 0.30.0, and fail if the outcome of a row differs from the one that is stated
here. There are three outcomes:

- **fast**: RAS saves time. The image is close to the image without RAS. In the tests, the latents differ by
  less than {near} (relative L2) when each regional step computes {share} of the tokens, with small networks
  that have random weights. A note says so if they may differ more.
- **dense**: every step computes the whole image. With speed `custom`, with which the rows are tested, the
  image is identical to the image without RAS, to the last bit, and no time is saved. With another speed, the
  run has the fewer steps of a plan. The log says why the run is dense, once, and its last line repeats it.
- **refused**: the node stops the prompt before sampling with an error that says what is wrong, what is
  expected and what to do.

The column *tried with* lists the model families with which a row was run. If a row lists only some families,
its outcome does not depend on the family, as far as is known. *All families* are those in the first row of
the table [Models](#models). The tests run on the CPU; tests for GPUs are in `tests/gpu`. The column *note*
has details. For runs that are dense or refused, it gives the reason.
"""


def page() -> str:
    """The whole page."""
    start = START.format(near=percent(NEAR), share=percent(CONFIG.sample_ratio))
    return "\n".join([start, *map(_group, GROUPS)])


def _group(group: Group) -> str:
    lines = [f"## {group.title}", ""]
    if group.text:
        lines += [group.text, ""]
    lines += ["| combination | outcome | tried with | note |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_row(row, group.near) for row in group.rows), ""])


def _row(row: Row, near: float) -> str:
    return f"| {row.name} | {row.outcome.value} | {_families(row)} | {_note(row, near)} |"


def _families(row: Row) -> str:
    if set(USUAL) <= set(row.families):
        more = [FAMILY_NAMES[name] for name in row.families if name not in USUAL]
        return ", ".join(["all families", *more]) if len(more) != 2 else "all families"
    return ", ".join(FAMILY_NAMES[name] for name in row.families) or "–"


def _note(row: Row, near: float) -> str:
    parts = [row.note]
    if row.near > near:
        parts.append(f"The latents differ by less than {percent(row.near)}.")
    if row.fault:
        parts.append(f"Does not work yet: {row.fault}.")
    if row.test:
        path = row.test.split("::")[0]
        parts.append(f"([test](../{path}))")
    return " ".join(filter(None, parts))
