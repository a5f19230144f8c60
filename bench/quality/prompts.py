"""The prompts of a measurement: the held-out prompts of the demo models, or the user's own."""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...ras_core.errors import RASError, path_end

HELD_OUT = Path(__file__).parent / "held_out.csv"
CALIBRATION = Path(__file__).parent / "calibration_prompts.txt"
"""Prompts for calibration, made of words that the demo models know.

None of them describes held-out artwork, which quality is measured with.
"""


@dataclass(frozen=True)
class Prompt:
    """A prompt. A held-out prompt also names the artwork that its text describes.

    Attributes:
        text: the prompt text.
        style, hexcode, background: style, emoji code point and background colour of the artwork; all three
            are empty for a user's own prompt.
    """

    text: str
    style: str = ""
    hexcode: str = ""
    background: str = ""


def read_prompts(path: Path, count: int | None = None) -> tuple[Prompt, ...]:
    """The first `count` prompts of a file: a CSV file with the fields of Prompt, or one prompt per text line.

    Raises:
        RASError: the file is missing or has no prompt.
    """
    if not path.is_file():
        raise RASError(
            f"no prompt file {path_end(path)}.",
            "a text file with one prompt per line.",
            "correct --prompts.",
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        names = {field.name for field in fields(Prompt)}
        lines = csv.DictReader(text.splitlines())
        found = [Prompt(**{k: v for k, v in line.items() if k in names}) for line in lines]
    else:
        found = [Prompt(line.strip()) for line in text.splitlines() if line.strip()]
    if not found:
        raise RASError(f"{path_end(path)} has no prompt.", "one prompt per line.", "correct --prompts.")
    return tuple(found[:count])


def write_held_out(archive: Path, out: Path, count: int) -> int:
    """Choose held-out (emoji, style) pairs of the artwork archive and write their prompts to a CSV file.

    The order of the prompts and the background colours are derived from checksums. So they look random, and
    even the first few prompts are varied.

    Returns:
        The number of prompts.
    """
    from ...training import data

    with zipfile.ZipFile(archive) as file:
        items = json.loads(file.read("items.json"))
    chosen = [item for item in items if data.is_held_out(item["hexcode"], item["style"])]
    chosen.sort(key=lambda item: _draw(item, "order"))
    prompts = [_prompt(item, list(data.COLOURS)) for item in chosen[:count]]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Prompt)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(prompt) for prompt in prompts)
    return len(prompts)


def _prompt(item: dict[str, Any], colours: Sequence[str]) -> Prompt:
    background = background_of(item["hexcode"], item["style"], colours)
    words = " ".join(re.findall(r"[^\W_]+", item["label"].lower()))
    return Prompt(f"{item['style']} {words} on {background}", item["style"], item["hexcode"], background)


def background_of(hexcode: str, style: str, colours: Sequence[str]) -> str:
    """Name of the background colour for the held-out artwork of an emoji in a style."""
    return colours[_draw({"hexcode": hexcode, "style": style}, "background") % len(colours)]


def _draw(item: dict[str, Any], what: str) -> int:
    return zlib.crc32(f"{what}:{item['hexcode'].upper()}:{item['style']}".encode())
