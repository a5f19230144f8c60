"""What the speed program runs, and what arithmetic expects of it. Pure: no ComfyUI, no device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..ras_core.cost import CostProfile

STEPS = 28
START_STEP = 4
RESETS = (12, 20)
RATIOS = (0.5, 0.25, 0.125)
REFERENCE_OPTIONS = {"sd3_medium": "fused", "lumina_next": "flash"}
"""The families of the reference code, and what its published scripts can turn on for each."""


@dataclass(frozen=True)
class Case:
    """A network, a picture size, a batch and the steps of a run."""

    shape: str
    pixels: int
    batch: int = 1
    steps: int = STEPS

    @property
    def key(self) -> str:
        return f"{self.shape}-{self.pixels}" + (f"-b{self.batch}" if self.batch > 1 else "")


# By importance: a short run does the first of them.
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
        graphs: the node's setting cuda_graphs, for "ras".
        option: of "reference": "flash" for FlashAttention, "fused" for its Triton kernels.
        kv_cache: the node's setting of that name, for "ras".
        compiled: the backend of ComfyUI's TorchCompileModel, which stands before; "" for none.
    """

    method: str
    ratio: float = 1.0
    graphs: str = "off"
    option: str = ""
    kv_cache: str = "gpu"
    compiled: str = ""

    @property
    def key(self) -> str:
        parts = [self.method]
        if self.method in ("ras", "reference"):
            parts.append(f"{self.ratio:.1%}".replace(".0%", "%"))
        if self.method == "ras":
            parts.append("eager" if self.graphs == "off" else "graph")
            parts.append("" if self.kv_cache == "gpu" else self.kv_cache)
        parts += [self.option, self.compiled and f"compiled ({self.compiled})"]
        return " ".join(part for part in parts if part)


def variants(
    ratios: Sequence[float], graphs: bool, compiled: str = "", storages: Sequence[str] = ()
) -> list[Variant]:
    """Dense first: everything is measured against it. `compiled` adds those with this backend, `storages`
    those with these settings of kv_cache.
    """
    modes = ("off", "auto") if graphs else ("off",)
    found = [Variant("dense"), Variant("ras", 1.0)]
    found += [Variant("ras", ratio, mode) for ratio in ratios for mode in modes]
    found.append(Variant("lazycache"))
    if compiled:
        found.append(Variant("dense", compiled=compiled))
        found += [Variant("ras", ratio, modes[-1], compiled=compiled) for ratio in ratios]
    found += [Variant("ras", ratio, modes[-1], kv_cache=each) for ratio in ratios for each in storages]
    return found


def reference_variants(case: Case, ratios: Sequence[float], on_gpu: bool) -> list[Variant]:
    """What the reference code can do of a case: diffusers' dense pipeline, then RAS.

    It picks the tokens of one picture, so a larger batch is run dense only. Its kernels for SD3 need Triton.
    For Lumina-Next diffusers attends with a mask, which rules the fast kernels out. The reference's script
    calls FlashAttention instead, so a dense run with it belongs to the comparison.
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
    """The dense variant that a variant of the reference is measured against: the same attention."""
    dense = [other for other in found if other.ratio >= 1]
    return next((other for other in dense if other.option == variant.option), dense[0])


def planned_counts(n_tokens: int, ratio: float, steps: int = STEPS) -> list[int]:
    """Active tokens of each step under this program's settings."""
    active = n_tokens - int((1 - ratio) * n_tokens + 1e-6)
    dense = {*range(START_STEP), *RESETS}
    return [n_tokens if step in dense else active for step in range(steps)]


def ideal_speedup(
    profile: CostProfile, n_tokens: int, text_rows: Sequence[int], counts: Iterable[int]
) -> float:
    """Dense FLOPs over the FLOPs of evaluations with these active tokens, for the branches' own text rows."""
    counts = list(counts)
    dense = sum(profile.step_flops(n_tokens, n_tokens, rows) for rows in text_rows) * len(counts)
    spent = sum(profile.step_flops(n_tokens, count, rows) for count in counts for rows in text_rows)
    return dense / spent


def pick_cases(wanted: str) -> list[Case]:
    """ "sd3_medium-512,lumina2" -> cases whose key begins with one of these; all for an empty text.

    Raises:
        ValueError: a name that fits no case.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        return list(CASES)
    unknown = [name for name in names if not any(case.key.startswith(name) for case in CASES)]
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(case.key for case in CASES)}")
    exact = {case.key for case in CASES} & set(names)
    loose = tuple(name for name in names if name not in exact)
    return [case for case in CASES if case.key in exact or (loose and case.key.startswith(loose))]


def unlike(cases: Iterable[Case]) -> list[Case]:
    """One case of each network and batch: where all pictures are small, sizes do not tell them apart."""
    found: dict[tuple[str, int], Case] = {}
    for case in cases:
        found.setdefault((case.shape, case.batch), case)
    return list(found.values())


def affordable_repeats(run_seconds: float, left: float, wanted: int) -> int:
    """Timed rounds that fit into the seconds left; 0 when not even one does."""
    return max(int(min(wanted, left / max(run_seconds, 1e-9))), 0)
