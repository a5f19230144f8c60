"""Saves plans in ComfyUI's user folder: one file for each calibrated model and latent size."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher

from ..errors import RASError
from ..method.plan_set import PlanSet
from .fingerprint import fingerprint
from .planned_model import settings_of

logger = logging.getLogger(__name__)

FOLDER = ("multirate_ras", "plans")
LONGEST_FILE = 2**20  # bytes; calibration writes a few thousand
LATENT_FACTORS = (8, 16, 32)  # pixels of an image for each element of a latent, in each direction


def plans_folder() -> Path:
    return Path(folder_paths.get_user_directory(), *FOLDER)


def save_plans(plans: PlanSet, model: ModelPatcher, size: Sequence[int]) -> Path:
    """Save a model's plans, replacing earlier ones of this size.

    Args:
        plans: the plans.
        model: the model that they were measured on.
        size: height and width of the latent.

    Raises:
        OSError: the file cannot be written.
    """
    path = plans_folder() / _name(fingerprint(model), size)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text(plans.to_json(), encoding="utf-8")
        os.replace(draft, path)  # atomic: another process reads either the old file or the new file
    finally:
        draft.unlink(missing_ok=True)
    return path


def saved_plans(model: ModelPatcher, size: Sequence[int] | None = None) -> PlanSet | None:
    """A model's plans, or None.

    Args:
        model: any MODEL.
        size: height and width of the latent; None to use the plans of this model that were saved last,
            whatever their size.
    """
    if last_change() is None:
        return None  # no plans are saved, so the fingerprint, computed at every run, is not needed
    own = fingerprint(model)
    for _, path in sorted(_stamped(_name(own, size) if size else f"{own}-*.json"), reverse=True):
        if (plans := _read(path)) is not None:
            return plans
    return None


def plans_of_source(source: str, pixels: tuple[int, int]) -> PlanSet | None:
    """The plans that were saved last for a model that is not loaded, or None.

    Args:
        source: identifies the nodes from which the model comes; see `PlanSet`.
        pixels: height and width of the image.
    """
    for stamp, path in sorted(_stamped("*.json"), reverse=True):
        size = path.stem.rpartition("-")[2].split("x")
        if source and _is_size_of(size, pixels):
            plans = _read_once(path, stamp)
            if plans is not None and plans.source == source:
                return plans
    return None


def _is_size_of(size: Sequence[str], pixels: tuple[int, int]) -> bool:
    """Whether a latent of this size, as in the name of a plan file, is one of an image of `pixels`."""
    if len(size) != 2 or not all(each.isdecimal() and int(each) for each in size):
        return False
    height, width = map(int, size)
    factor = pixels[0] // height
    return factor in LATENT_FACTORS and (height * factor, width * factor) == pixels


def last_change() -> tuple[str, int] | None:
    """Name and time of the plan file that was saved last, for any model; None if there is no plan file."""
    newest = max(_stamped("*.json"), default=None)
    return (newest[1].name, newest[0]) if newest else None


def _stamped(pattern: str) -> list[tuple[int, Path]]:
    """The files of the plans folder with their times; those that cannot be accessed, or are gone, are left
    out: another process may be writing them.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in plans_folder().glob(pattern):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
    return found


def _name(own: str, size: Sequence[int]) -> str:
    return f"{own}-{'x'.join(map(str, size))}.json"


@lru_cache(maxsize=64)
def _read_once(path: Path, stamp: int) -> PlanSet | None:
    """`_read`, but only once for each time `stamp` at which the file changed."""
    return _read(path)


def _read(path: Path) -> PlanSet | None:
    """The set of plans that a plan file contains. None, with a warning, if the file is damaged, has another
    version, or contains a plan that no run can follow.
    """
    try:
        with path.open("rb") as file:
            plans = PlanSet.from_json(file.read(LONGEST_FILE).decode("utf-8"))
        for plan in plans.plans:
            settings_of(plan)
        return plans
    except (OSError, ValueError, OverflowError, RecursionError, RASError) as error:
        logger.warning("Multirate RAS: saved plans are ignored: %s: %s", path.name, error)
        return None
