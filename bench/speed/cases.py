"""Cases and variants of the speed program, and the speed-up expected from FLOPs. Imports no torch or
ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...ras_core.models.cost import CostProfile

STEPS = 28
START_STEP = 4
RESETS = (12, 20)
RATIOS = (0.5, 0.25, 0.125)
EAGER_RATIO = 0.25
"""RAS runs without CUDA graphs at this ratio (share of active tokens) only, or with --more at every ratio."""

WEIGHTS = ("default", "fp8", "lora", "scaled_fp8", "int8", "int8_convrot")
"""How a network's weights are loaded: unchanged, with the loader's weight_dtype fp8_e4m3fn, with a LoRA, or
from a file in one of ComfyUI's quantised layouts."""

DEFAULT_CASES = "sd3_medium-1024,sd35_large-1024,lumina2-1024,z_image-1024"
DEFAULT_WEIGHTS = {"sd3_medium-1024": WEIGHTS}
"""For each of these cases, the kinds of weights to run by default. All other cases run the first three of
WEIGHTS: unchanged, in fp8, and with a LoRA."""

SPREAD = "+spread"
"""Ending of a kv_cache setting whose forecasts are corrected with `spread`, as in a run with a plan."""

REFERENCE_OPTIONS = {"sd3_medium": "fused", "lumina_next": "flash"}
"""The networks that the reference code supports, each with the kernel option that the reference's published
script uses for it."""


@dataclass(frozen=True)
class Case:
    """A network, an image size, a batch size and a number of steps.

    Attributes:
        blocks: number of main blocks of the true width that the network has (option --blocks); 0 for all of
            its blocks.
    """

    shape: str
    pixels: int
    batch: int = 1
    steps: int = STEPS
    blocks: int = 0

    @property
    def key(self) -> str:
        batch = f"-b{self.batch}" if self.batch > 1 else ""
        return f"{self.shape}-{self.pixels}{batch}" + (f"-{self.blocks}blocks" if self.blocks else "")


# The most important cases come first, because cases at the end are dropped if --seconds is too short for all.
CASES = (
    Case("sd3_medium", 1024),
    Case("lumina2", 1024),
    Case("sd35_large", 1024),
    Case("lumina_next", 1024, steps=30),  # the paper's setting
    Case("sd3_medium", 512),
    Case("sd3_medium", 1536),
    Case("sd35_medium", 1024),
    Case("sd3_medium", 1024, 4),
    Case("z_image", 1024),
    Case("flux_dev", 1024),
    Case("qwen_image", 1024),
    Case("qwen_image_edit", 1024),
    Case("anima", 1024),
    Case("flux2_klein_4b", 1024),
    Case("flux2_klein_4b_edit", 1024),
    Case("flux_kontext", 1024),
    Case("flux2_klein_9b", 1024),
    Case("flux2_klein_9b_edit", 1024),
    Case("lumina2", 1024, 4),
    Case("sd3_medium", 2048),
    Case("sd3_medium", 1024, 2),
    Case("sd3_medium", 768),
)


@dataclass(frozen=True)
class Variant:
    """One way to run a case.

    Attributes:
        method: "dense" (ComfyUI without RAS), "ras" (this pack), "lazycache" (ComfyUI's node) or "reference"
            (microsoft/RAS on diffusers; dense if `ratio` is 1).
        ratio: share of active tokens in regional steps, for the methods "ras" and "reference".
        graphs: value of the RAS node's input `cuda_graphs`, for the method "ras".
        option: optional kernels that the method "reference" uses: "flash" for FlashAttention, "fused" for
            microsoft/RAS's Triton kernels, "" for neither.
        kv_cache: value of the RAS node's input `kv_cache`, for the method "ras"; with the ending SPREAD,
            forecasts are also corrected.
        speed: value of the RAS node's input `speed`, for the method "ras": the run then takes a plan, and
            `ratio` and `kv_cache` have no effect. "" for runs without a plan.
        node: the node that samples a run with a plan: "KSampler", behind RAS Patch Model, or "RASKSampler".
        compiled: backend of a TorchCompileModel node of ComfyUI before the RAS node; "" if there is no such
            node.
        weights: kind of weights, one of the names in WEIGHTS.
    """

    method: str
    ratio: float = 1.0
    graphs: str = "off"
    option: str = ""
    kv_cache: str = "gpu"
    compiled: str = ""
    weights: str = "default"
    speed: str = ""
    node: str = "KSampler"

    @property
    def key(self) -> str:
        parts = [self.method]
        if self.speed:
            parts += [self.speed, "" if self.node == "KSampler" else self.node]
        elif self.method in ("ras", "reference"):
            parts.append(f"{self.ratio:.1%}".replace(".0%", "%"))
        if self.method == "ras":
            parts.append("eager" if self.graphs == "off" else "graph")
            parts.append("" if self.kv_cache == "gpu" else self.kv_cache)
        parts += [self.option, self.compiled and f"compiled ({self.compiled})"]
        parts.append("" if self.weights == "default" else self.weights)
        return " ".join(part for part in parts if part)


def variants(
    ratios: Sequence[float],
    graphs: bool,
    compiled: str = "",
    format_names: Sequence[str] = (),
    more: bool = False,
    speeds: Sequence[str] = (),
) -> list[Variant]:
    """The variants with unchanged weights. The dense variant is the first, since all others are compared with
    it.

    Args:
        ratios: shares of active tokens in regional steps.
        graphs: whether the device has CUDA graphs.
        compiled: a backend of torch.compile; if not "", compiled variants with this backend are added.
        format_names: further values of the RAS node's input `kv_cache`. Each value adds a RAS variant for
            each ratio.
        more: whether to add RAS with all tokens active, RAS without CUDA graphs at every ratio, and
            LazyCache.
        speeds: values of the RAS node's input `speed`. Each value adds a run with the plan through KSampler,
            and one through RASKSampler.
    """
    mode = "auto" if graphs else "off"
    found = [Variant("dense")]
    found += [Variant("ras", ratio, mode) for ratio in ratios]
    found += [Variant("ras", ratio) for ratio in (ratios if more else eager_ratios(ratios)) if graphs]
    if more:
        found += [Variant("ras", 1.0), Variant("lazycache")]
    if compiled:
        found.append(Variant("dense", compiled=compiled))
        found += [Variant("ras", ratio, mode, compiled=compiled) for ratio in ratios]
    found += [Variant("ras", ratio, mode, kv_cache=each) for ratio in ratios for each in format_names]
    nodes = ("KSampler", "RASKSampler")
    found += [Variant("ras", graphs=mode, speed=speed, node=node) for speed in speeds for node in nodes]
    return found


def eager_ratios(ratios: Sequence[float]) -> Sequence[float]:
    """The ratio to run without CUDA graphs: EAGER_RATIO if it is among the ratios, else the first of them."""
    return [EAGER_RATIO] if EAGER_RATIO in ratios else ratios[:1]


def other_weights(ratios: Sequence[float], graphs: bool, weights: str) -> list[Variant]:
    """The variants with one kind of weights (`weights`, a name in WEIGHTS), the dense variant first."""
    mode = "auto" if graphs else "off"
    return [Variant("dense", weights=weights), *(Variant("ras", r, mode, weights=weights) for r in ratios)]


def weights_of(case: Case, wanted: Sequence[str], tiny: bool = False) -> Sequence[str]:
    """The kinds of weights (of WEIGHTS) to run a case with: the wanted kinds, or else the case's default."""
    if not loads_from_file(case, tiny):
        return WEIGHTS[:1]
    return wanted or (WEIGHTS if tiny else DEFAULT_WEIGHTS.get(case.key, WEIGHTS[:3]))


def loads_from_file(case: Case, tiny: bool = False) -> bool:
    """Whether ComfyUI's loader detects the network from its file.

    The loader detects Lumina 2, Z-Image, Qwen-Image and Anima only at their original widths, so it does not
    detect their tiny networks. It never detects Lumina-Next, because ComfyUI does not have this network; the
    pack implements it. It does not count the blocks of SD3 and Anima, but infers their number from the width.
    Qwen-Image with all its blocks is not written to a file, because writing and reading 41 GB would take
    longer than the runs.
    """
    if case.shape == "lumina_next" or (case.blocks and case.shape.startswith(("sd3", "anima"))):
        return False
    if case.shape.startswith("qwen") and not case.blocks:
        return False
    return case.shape.startswith(("sd3", "flux")) or not tiny


def reference_variants(case: Case, ratios: Sequence[float], on_gpu: bool) -> list[Variant]:
    """The variants of a case that the reference code can run: diffusers' dense pipeline, then the reference's
    RAS.

    The reference can select tokens only for a single image. For larger batches, the result has only the dense
    variant. The reference's kernels for SD3 need Triton, and so a GPU. For Lumina-Next, diffusers passes a
    mask to attention. With a mask, PyTorch cannot use its fast kernels. The reference's script calls
    FlashAttention without a mask instead; for a fair comparison, there is also a dense variant with
    FlashAttention.
    """
    option = REFERENCE_OPTIONS.get(case.shape)
    if option is None:
        return []
    found = [Variant("reference")]
    if case.batch > 1:
        return found
    found += [Variant("reference", ratio) for ratio in ratios]
    if option == "flash":
        found.append(Variant("reference", option=option))
    if option == "flash" or on_gpu:
        found += [Variant("reference", ratio, option=option) for ratio in ratios]
    return found


def own_dense(variant: Variant, found: Iterable[Variant]) -> Variant:
    """The dense variant with which a variant of the reference is compared: the one with the same
    attention.
    """
    dense = [other for other in found if other.ratio >= 1]
    return next((other for other in dense if other.option == variant.option), dense[0])


def planned_counts(n_tokens: int, ratio: float, steps: int = STEPS) -> list[int]:
    """Planned number of active tokens in each step, with this program's START_STEP and RESETS."""
    active = n_tokens - int((1 - ratio) * n_tokens + 1e-6)
    dense = {*range(START_STEP), *RESETS}
    return [n_tokens if step in dense else active for step in range(steps)]


def ideal_speedup(
    profile: CostProfile, n_tokens: int, text_rows: Sequence[int], counts: Iterable[int]
) -> float:
    """FLOPs of a dense run, divided by those of a run whose evaluations have these numbers of active tokens.

    Args:
        profile: FLOPs of the network.
        n_tokens: number of image tokens.
        text_rows: number of text rows of each prompt that is evaluated.
        counts: number of active tokens in each evaluation.
    """
    counts = list(counts)
    dense = sum(profile.step_flops(n_tokens, n_tokens, rows) for rows in text_rows) * len(counts)
    spent = sum(profile.step_flops(n_tokens, count, rows) for count in counts for rows in text_rows)
    return dense / spent


def pick_cases(wanted: str) -> list[Case]:
    """The cases that a list of names in a text picks, such as "sd3_medium-512,lumina2".

    A name that is the key of a case picks this case. Any other name picks all cases whose keys begin with it.
    An empty text and "all" pick every case.

    Raises:
        ValueError: a name matches no case.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names or names == ["all"]:
        return list(CASES)
    unknown = [name for name in names if not any(case.key.startswith(name) for case in CASES)]
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(case.key for case in CASES)}")
    exact = {case.key for case in CASES} & set(names)
    loose = tuple(name for name in names if name not in exact)
    return [case for case in CASES if case.key in exact or (loose and case.key.startswith(loose))]


def unlike(cases: Iterable[Case]) -> list[Case]:
    """The first case of each network and batch size, for --tiny. With --tiny all images have the same size,
    so cases that differ only in the image size would measure the same.
    """
    found: dict[tuple[str, int], Case] = {}
    for case in cases:
        found.setdefault((case.shape, case.batch), case)
    return list(found.values())
