"""Collect public-domain clip art into one archive, `clipart.zip`, of the same structure as `emoji.zip`.

Only clip art that shows a single object is collected. Input is the unpacked Debian package openclipart-svg.
Run: `python -m training clipart --package FOLDER`.
"""

from __future__ import annotations

import argparse
import html
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..demo.prompt import split_words
from .collect import Item
from .data import render_svg

log = logging.getLogger(__name__)

STYLE, GROUP = "clipart", -1
FOLDERS = (
    "animals", "buildings", "containers", "education", "electronics", "food", "office", "people", "plants",
    "recreation", "science", "signs_and_symbols/weather", "tools", "transportation", "unsorted",
)  # fmt: skip
LEFT_OUT = re.compile(
    "weapons|silhouette|cards/|dice/|stickmen|aiga|roadsigns|boating_rules|pantyhose|duplicates|christianity"
    "|logo|flag|map|icon"
)
NOT_DRAWN = re.compile(r"<(?:\w+:)?(?:text|image|flowRoot)\b")
"""SVG elements that exclude a file: text would need fonts, and embedded raster images are large."""
METADATA = re.compile(
    r"<metadata.*?</metadata>|<sodipodi:namedview[^>]*/>|<sodipodi:namedview.*?</sodipodi:namedview>",
    re.DOTALL,
)
NO_KEYWORD = re.compile(r"hash|0x|^unsorted$|^symbol$|^usholiday$|^weathersym$")
MAX_LABEL_WORDS = 5
FRAME_SIZE = 256
PIXELS = {None: 1.0, "px": 1.0, "pt": 96 / 72, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
LEAST_COVER, MOST_COVER, MOST_STRETCH = 0.06, 0.97, 4


def clip_art(root: Path, largest: int) -> Iterator[tuple[Item, str]]:
    """Suitable clip art from the chosen folders, as items with their SVG text.

    Skips duplicates, unsuitable subjects, and files whose compressed size in bytes is greater than `largest`.
    """
    seen = set()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.svg")):
            name = path.relative_to(root).with_suffix("").as_posix()
            source = path.read_text("utf-8", errors="replace")
            text = METADATA.sub("", source)
            small = len(zlib.compress(text.encode(), 9)) <= largest
            if small and text not in seen and not LEFT_OUT.search(name) and not NOT_DRAWN.search(text):
                seen.add(text)
                yield describe(name, source), text


def describe(name: str, source: str) -> Item:
    """Create the item of a file: its label is the title or file name, its tags are keywords and folders."""
    found = re.search(r"<dc:title>([^<]*)</dc:title>", source)
    title = html.unescape(found.group(1)) if found else ""
    *folders, file = name.split("/")
    if not title or "clipart by" in title.lower():
        title = file
    label = [word for word in split_words(title) if not re.search(r"\d", word)][:MAX_LABEL_WORDS]
    creator = re.search(r"<dc:creator>.*?<dc:title>([^<]*)</dc:title>", source, re.DOTALL)
    author = set(split_words(creator.group(1) if creator else ""))
    listed = re.search(r"<dc:subject>(.*?)</dc:subject>", source, re.DOTALL)
    keywords = re.findall(r"<rdf:li>([^<]+)</rdf:li>", listed.group(1) if listed else "")
    tags = [html.unescape(word).lower() for word in keywords]
    tags = [tag for tag in tags if not NO_KEYWORD.search(tag) and not author & set(split_words(tag))]
    tags = list(dict.fromkeys([*tags, *(folder.replace("_", " ") for folder in folders)]))
    return Item(STYLE, name, " ".join(label) or folders[-1], tags, GROUP, f"clipart/{name}.svg")


def framed(text: str) -> str | None:
    """Return the SVG document with its page (the `viewBox`) cropped to the bounds of what is drawn on it.

    Returns None if the SVG cannot be rendered or cropped, or if the drawing does not look like a single
    object: if it covers too little or too much of its bounding box, or if that box is too long and thin.
    """
    try:
        image = render_svg(text, FRAME_SIZE)
        left, top, right, bottom = image.getchannel("A").getbbox()
    except Exception:  # the renderer has no exception class of its own; an empty image has no bounding box
        return None
    width, height = right - left, bottom - top
    cover = np.asarray(image.getchannel("A")).sum() / (255 * width * height)
    if not LEAST_COVER < cover < MOST_COVER or max(width, height) > MOST_STRETCH * min(width, height):
        return None
    if max(width, height) > 0.9 * FRAME_SIZE:
        return text
    page = re.search(r"<svg[^>]*?\bwidth=\"([\d.]+)(px|pt|mm|cm|in)?\"", text)
    if not page or "<!ENTITY" in text:
        return None
    unit = float(page.group(1)) * PIXELS[page.group(2)] / image.width
    box = " ".join(f"{unit * number:.1f}" for number in (left, top, width, height))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{text[text.index("<svg") :]}</svg>'


def collect(root: Path, target: Path, largest: int) -> int:
    """Write the archive and return the number of images in it."""
    found = list(clip_art(root, largest))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        frames = pool.map(framed, [text for _, text in found], chunksize=16)
        kept = [(item, text) for (item, _), text in zip(found, frames, strict=True) if text]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
        for item, text in kept:
            archive.writestr(item.file, text)
        archive.writestr("items.json", json.dumps([asdict(item) for item, _ in kept]))
    return len(kept)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training clipart", description=__doc__)
    parser.add_argument("--package", type=Path, required=True, help="the package's usr/share/openclipart/svg")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data/clipart.zip")
    parser.add_argument("--largest", type=int, default=12000, help="most bytes of a compressed SVG file")
    arguments = parser.parse_args()
    log.info("%d images in %s", collect(arguments.package, arguments.out, arguments.largest), arguments.out)
