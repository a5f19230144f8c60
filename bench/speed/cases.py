"""Cases and variants of the speed program, and the speed-up expected from FLOPs. Pure: needs no ComfyUI."""

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
"""The ratio for runs without CUDA graphs."""

WEIGHTS = ("default", "fp8", "lora", "scaled_fp8", "int8", "int8_convrot")
"""How a network's weights are loaded: unchanged, with the loader's weight_dtype fp8_e4m3fn, with a LoRA, or
from a file in one of ComfyUI's quantised layouts."""

DEFAULT_CASES = "sd3_medium-1024,sd35_large-1024,lumina2-1024,z_image-1024"
DEFAULT_WEIGHTS = {"sd3_medium-1024": WEIGHTS}
"""By case; all other cases load the weights unchanged, in fp8, and with a LoRA."""

REFERENCE_OPTIONS = {"sd3_medium": "fused", "lumina_next": "flash"}
"""The families of the reference code, with the options of its published scripts for each."""


@dataclass(frozen=True)
class Case:
    """A network, an image size, a batch size and a number of steps."""

    shape: str
    pixels: int
    batch: int = 1
    steps: int = STEPS

    @property
    def key(self) -> str:
        return f"{self.shape}-{self.pixels}" + (f"-b{self.batch}" if self.batch > 1 else "")


# Most important first: a short run only does the first ones.
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
    Case("lumina2", 1024, 4),
    Case("sd3_medium", 2048),
    Case("sd3_medium", 1024, 2),
    Case("sd3_medium", 768),
)


@dataclass(frozen=True)
class Variant:
    """One way to run a case.

    Attributes:
        method: "dense", "ras", "lazycache" or "reference".
        ratio: share of active tokens, for "ras" and "reference".
        graphs: the node's input cuda_graphs, for "ras".
        option: for "reference": "flash" for FlashAttention, "fused" for its Triton kernels.
        kv_cache: the node's input of that name, for "ras".
        compiled: the backend of ComfyUI's TorchCompileModel node upstream; "" for none.
        weights: one of WEIGHTS.
    """

    method: str
    ratio: float = 1.0
    graphs: str = "off"
    option: str = ""
    kv_cache: str = "gpu"
    compiled: str = ""
    weights: str = "default"

    @property
    def key(self) -> str:
        parts = [self.method]
        if self.method in ("ras", "reference"):
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
) -> list[Variant]:
    """The variants with unchanged weights. Dense is first, as the baseline for all others.

    Args:
        ratios: shares of active tokens.
        graphs: whether the device has CUDA graphs.
        compiled: adds runs with this backend.
        format_names: adds runs with these settings of kv_cache.
        more: adds runs with all tokens, every ratio without graphs, and LazyCache.
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
    return found


def eager_ratios(ratios: Sequence[float]) -> Sequence[float]:
    """EAGER_RATIO if it is among the ratios, else the first ratio."""
    return [EAGER_RATIO] if EAGER_RATIO in ratios else ratios[:1]


def other_weights(ratios: Sequence[float], graphs: bool, weights: str) -> list[Variant]:
    """The variants with another form of the same weights, dense first."""
    mode = "auto" if graphs else "off"
    return [Variant("dense", weights=weights), *(Variant("ras", r, mode, weights=weights) for r in ratios)]


def weights_of(case: Case, wanted: Sequence[str], tiny: bool = False) -> Sequence[str]:
    """The forms of weights to run a case with: the requested ones, or the case's default."""
    if not loads_from_file(case, tiny):
        return WEIGHTS[:1]
    return wanted or (WEIGHTS if tiny else DEFAULT_WEIGHTS.get(case.key, WEIGHTS[:3]))


def loads_from_file(case: Case, tiny: bool = False) -> bool:
    """Whether ComfyUI's loader detects the network from its file. It only detects Lumina 2 and Z-Image at
    their original widths, and does not know Lumina-Next, which is the pack's own.
    """
    return case.shape.startswith(("sd3", "flux")) or (case.shape != "lumina_next" and not tiny)


def reference_variants(case: Case, ratios: Sequence[float], on_gpu: bool) -> list[Variant]:
    """The variants of a case that the reference code can run: diffusers' dense pipeline, then RAS.

    It selects the tokens of a single image, so larger batches run dense. Its kernels for SD3 need Triton.
    For Lumina-Next, diffusers passes a mask to attention, which rules out the fast kernels. The reference's
    script calls FlashAttention instead, so the comparison includes a dense run with it.
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
    """The dense variant to compare a reference variant with: the one with the same attention."""
    dense = [other for other in found if other.ratio >= 1]
    return next((other for other in dense if other.option == variant.option), dense[0])


def planned_counts(n_tokens: int, ratio: float, steps: int = STEPS) -> list[int]:
    """Planned active tokens of each step with this program's settings."""
    active = n_tokens - int((1 - ratio) * n_tokens + 1e-6)
    dense = {*range(START_STEP), *RESETS}
    return [n_tokens if step in dense else active for step in range(steps)]


def ideal_speedup(
    profile: CostProfile, n_tokens: int, text_rows: Sequence[int], counts: Iterable[int]
) -> float:
    """Dense FLOPs divided by those of evaluations with these active tokens, with each branch's text rows."""
    counts = list(counts)
    dense = sum(profile.step_flops(n_tokens, n_tokens, rows) for rows in text_rows) * len(counts)
    spent = sum(profile.step_flops(n_tokens, count, rows) for count in counts for rows in text_rows)
    return dense / spent


def pick_cases(wanted: str) -> list[Case]:
    """ "sd3_medium-512,lumina2" -> cases whose key begins with one of these; all for an empty text or "all".

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
    """One case of each network and batch size: with tiny images, the cases do not differ in size."""
    found: dict[tuple[str, int], Case] = {}
    for case in cases:
        found.setdefault((case.shape, case.batch), case)
    return list(found.values())


def affordable_repeats(run_seconds: float, left: float, wanted: int) -> int:
    """Number of timed rounds that fit into the seconds left; 0 if not even one does."""
    return max(int(min(wanted, left / max(run_seconds, 1e-9))), 0)
