"""What the speed program runs, and what arithmetic expects of it. Pure: no ComfyUI, no device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..ras_core.cost import CostProfile

STEPS = 28
START_STEP = 4
RESETS = (12, 20)
RATIOS = (0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Case:
    """A network, a picture size and a batch."""

    shape: str
    pixels: int
    batch: int = 1

    @property
    def key(self) -> str:
        return f"{self.shape}-{self.pixels}" + (f"-b{self.batch}" if self.batch > 1 else "")


# By importance: a short run does the first of them.
CASES = (
    Case("sd3_medium", 1024),
    Case("lumina2", 1024),
    Case("sd35_large", 1024),
    Case("sd3_medium", 512),
    Case("sd3_medium", 1536),
    Case("sd35_medium", 1024),
    Case("sd3_medium", 1024, 4),
    Case("z_image", 1024),
    Case("lumina2", 1024, 4),
    Case("sd3_medium", 2048),
)


@dataclass(frozen=True)
class Variant:
    """One way to run a case.

    Attributes:
        method: "dense", "ras", "lazycache" or "reference".
        ratio: share of active tokens, for "ras" and "reference".
        graphs: the node's setting cuda_graphs, for "ras".
        kv_cache: the node's setting of that name, for "ras"; the name of a variant does not tell it.
    """

    method: str
    ratio: float = 1.0
    graphs: str = "off"
    kv_cache: str = "gpu"

    @property
    def key(self) -> str:
        if self.method in ("dense", "lazycache"):
            return self.method
        parts = [self.method, f"{self.ratio:.1%}".replace(".0%", "%")]
        if self.method == "ras":
            parts.append("eager" if self.graphs == "off" else "graph")
        return " ".join(parts)


def variants(ratios: Sequence[float], graphs: bool, reference: bool) -> list[Variant]:
    """Dense first: everything is measured against it."""
    modes = ("off", "auto") if graphs else ("off",)
    found = [Variant("dense"), Variant("ras", 1.0)]
    found += [Variant("ras", ratio, mode) for ratio in ratios for mode in modes]
    found.append(Variant("lazycache"))
    if reference:
        found += [Variant("reference", ratio) for ratio in (1.0, *ratios)]
    return found


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


def affordable_repeats(run_seconds: float, left: float, wanted: int) -> int:
    """Timed rounds that fit into the seconds left; 0 when not even one does."""
    return max(int(min(wanted, left / max(run_seconds, 1e-9))), 0)
