"""Collect the emoji artwork and its English names into one archive, `emoji.zip`.

Input is a folder with the unpacked npm packages named in README.md. Run: `python -m training collect`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SVG_PACKS = {
    "noto": "iconify-json-noto-1.2.9",
    "classic": "iconify-json-noto-v1-1.2.5",
    "fluent": "iconify-json-fluent-emoji-flat-1.2.6",
    "twemoji": "iconify-json-twemoji-1.2.5",
}
WEBP_STYLE, WEBP_PACK = "3d", "lobehub-fluent-emoji-3d-1.1.0"
NAMES_PACK = "emojibase-data-17.0.0"
GROUPS = (0, 3, 4, 5, 6, 7)  # smileys, animals, food, travel, activities, objects

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{box}">{body}</svg>'
)


@dataclass(frozen=True)
class Item:
    """One image of the data set.

    Attributes:
        style: the word for the image's style in prompts.
        hexcode: the emoji's code points in hexadecimal; for clip art, its path in the package without suffix.
        label: the English name of what the image shows.
        tags: search tags, used as further words in prompts.
        group: index of the emoji's group in emojibase (smileys are group 0); -1 for clip art.
        file: the image's path in the archive.
    """

    style: str
    hexcode: str
    label: str
    tags: list[str]
    group: int
    file: str


def concepts(root: Path) -> list[dict[str, Any]]:
    """The entries of emojibase for all emoji in the groups `GROUPS`."""
    entries = json.loads((root / NAMES_PACK / "package/en/data.json").read_text("utf-8"))
    return [entry for entry in entries if entry.get("group") in GROUPS]


def plain_code(hexcode: str) -> str:
    """An emoji's code in lower case, without the variation selector FE0F, which only some packs include."""
    return hexcode.lower().replace("-fe0f", "")


def svg_items(root: Path, style: str, entries: list[dict[str, Any]]) -> Iterator[tuple[Item, str]]:
    """Items of one icon set, with their SVG text.

    Icons are found by code point, in the table `chars.json` of their set. If this table is empty, that of the
    set `noto` is used.
    """
    icons = _read(root, SVG_PACKS[style], "icons.json")
    chars = _read(root, SVG_PACKS[style], "chars.json") or _read(root, SVG_PACKS["noto"], "chars.json")
    names = {plain_code(code): name for code, name in chars.items()}
    for entry in entries:
        code = plain_code(entry["hexcode"])
        slug = re.sub(r"[^a-z0-9]+", "-", entry["label"].lower()).strip("-")
        icon = _icon(icons, names.get(code, "")) or _icon(icons, slug)
        if icon:
            yield _item(entry, style, f"svg/{style}/{code}.svg"), _svg(icons, icon)


def webp_items(root: Path, entries: list[dict[str, Any]]) -> Iterator[tuple[Item, Path]]:
    """Items of the 3-D emoji set, each with the path of its image."""
    folder = root / WEBP_PACK / "package/assets"
    files = {plain_code(path.stem): path for path in folder.glob("*.webp")}
    for entry in entries:
        code = plain_code(entry["hexcode"])
        if code in files:
            yield _item(entry, WEBP_STYLE, f"webp/{code}.webp"), files[code]


def collect(root: Path, target: Path) -> int:
    """Write the archive and return the number of images in it."""
    entries, items = concepts(root), []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for style in SVG_PACKS:
            for item, text in svg_items(root, style, entries):
                archive.writestr(item.file, text)
                items.append(item)
        for item, path in webp_items(root, entries):
            archive.write(path, item.file)
            items.append(item)
        archive.writestr("items.json", json.dumps([asdict(item) for item in items]))
    return len(items)


def _read(root: Path, pack: str, name: str) -> dict[str, Any]:
    return json.loads((root / pack / "package" / name).read_text("utf-8"))


def _icon(icons: dict[str, Any], name: str) -> dict[str, Any] | None:
    alias = icons.get("aliases", {}).get(name)
    return icons["icons"].get(alias["parent"] if alias else name)


def _svg(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return SVG.format(box=box, body=icon["body"])


def _item(entry: dict[str, Any], style: str, file: str) -> Item:
    return Item(style, entry["hexcode"], entry["label"], entry.get("tags", []), entry["group"], file)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training collect", description=__doc__)
    parser.add_argument("--packs", type=Path, default=Path(__file__).parent / "data/npm")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data/emoji.zip")
    arguments = parser.parse_args()
    log.info("%d images in %s", collect(arguments.packs, arguments.out), arguments.out)
