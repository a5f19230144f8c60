"""Rejected words stay out of the repository: translated sentences, and names with several meanings."""

import re

import pytest
from support.archive import tracked
from support.comfy import ROOT

PACK = (
    "ras_core/", "nodes/", "lumina_next/", "web/", "locales/", "docs/", "README.md", "CHANGELOG.md",
    "__init__.py",
)  # fmt: skip

TOOLS = ("bench/", "dev/", "training/", "demo/", "tests/")

REJECTED = {
    r"\bpictures?\b": "image",
    r"\banew\b": "again",
    r"\b(goes|go|going|went) on\b": "continues; for keys and values: are extrapolated",
    r"\b(is|are|was|were) had\b": "translated: use the active voice",
    r"\b(comes?|came) to (the|its|their) end\b": "ends, finishes",
    r"\bstands? (in|at) (one|its|their)\b": "is in, is part of",
    r"\bwhere (it|they) (stands?|stood|lies?|lay)\b": "its address",
    r"\b(has|have) to lie\b": "must be in",
    r"\bwithout a word\b": "silently",
    r"\bbrings? along\b": "includes, is bundled with",
    r"\bin the way that\b": "as",
    r"\bhave the device do\b": "launch, enqueue",
    r"\bby arithmetic\b|\bis arithmetic\b": "expected, from FLOPs",
    r"\bare to be (regional|dense)\b": "planned as regional",
    r"\bside by side\b|\bside_by_side\b": "in parallel, overlap",
    r"\brecordings?\b|\brecorded\b": "capture, captured call (of a CUDA graph); log, trace (of a run)",
    r"\b(on|of) the host\b|\bhost memory\b|\bhost's side\b": "main memory, CPU side, ComfyUI",
    r"\b(wishes|slabs?|purse|ferry|landings?)\b": "preferences, arena, token budget, offloader, row writer",
    r"\bhooks\.py\b|\bfused\.py\b|\bclock\.py\b": "the module's name of today",
    r"\baufgezeichnet\b": "erfasst (a CUDA graph)",
    r"\bbeside (each|one an)other\b": "in a row, compared, in turns",
    r"\b(is|are|was|were) told (of|in)\b|\btold of\b|told_of": "is reported, is logged",
    r"\b(which|that) they stood\b": "its address",
    r"\bsteps without number\b|\bspoken of\b|\bfor people\b": "translated: name what is meant",
    r"\b(made ready|not to its end)\b": "prepared; not completely",
    r"\b(for|at|through|by) (a|another|few) doors?\b|few_doors": "interface, wrapper",
    r"\bhands? on\b|\bhanded on\b": "passes",
    r"\bis had\b|\bcan be had\b|\bat hand\b": "is available, is installed",
    r"\ba person's\b": "the user's",
    r"leaves?_the_others?_alone|_and_says?_(so|why)\b|_is_told\b|_are_told\b": "plain English names",
}
"""What not to write, as a regular expression, and what to write instead."""

OF_THE_PACK = (r"\bpictures?\b", r"\brecordings?\b|\brecorded\b")
"""Rejected in the pack only: names in the tools, and stored reference runs of the tests."""


def read(folders: tuple[str, ...], endings: tuple[str, ...]) -> dict[str, str]:
    """The texts of the tracked files in these folders, by path. This file is left out, because it contains
    the words that it rejects.
    """
    names = [name for name in tracked() if name.startswith(folders) and name.endswith(endings)]
    return {
        name: (ROOT / name).read_text(encoding="utf-8") for name in names if name != "tests/test_words.py"
    }


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Python, Markdown and translations of the pack."""
    return read(PACK, (".py", ".md", ".json"))


@pytest.fixture(scope="module")
def texts_of_tools() -> dict[str, str]:
    """The texts of programs and Markdown pages in all folders that are not in the archive, and in demo/."""
    return read(TOOLS, (".py", ".md", ".sh", ".mjs"))


def found(pattern: str, texts: dict[str, str]) -> list[str]:
    """Every occurrence of a pattern, as path, line and match. A space also matches a line break."""
    spaced = re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name, text in texts.items()
        for match in spaced.finditer(text)
    ]


@pytest.mark.parametrize("pattern", REJECTED)
def test_rejected_words_do_not_occur(pattern, texts):
    assert found(pattern, texts) == [], f"write instead: {REJECTED[pattern]}"


@pytest.mark.parametrize("pattern", [pattern for pattern in REJECTED if pattern not in OF_THE_PACK])
def test_rejected_words_do_not_occur_in_the_tools(pattern, texts_of_tools):
    assert found(pattern, texts_of_tools) == [], f"write instead: {REJECTED[pattern]}"


def test_all_parts_are_read(texts, texts_of_tools):
    assert all(any(name.startswith(part) for name in texts) for part in PACK)
    assert all(any(name.startswith(part) for name in texts_of_tools) for part in TOOLS)
    assert set(OF_THE_PACK) <= set(REJECTED)


def test_a_sentence_that_was_rejected_is_found():
    old = "speed-up by\narithmetic; K/V go on along their last change; made anew"
    assert [bool(found(pattern, {"old": old})) for pattern in REJECTED].count(True) == 3
