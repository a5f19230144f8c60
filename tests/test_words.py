"""Rejected words stay out of the pack: translated sentences, and names with several meanings."""

import re

import pytest
from support.archive import tracked
from support.comfy import ROOT

PACK = ("ras_core/", "nodes/", "lumina_next/", "web/", "locales/", "README.md", "CHANGELOG.md", "__init__.py")

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
}
"""What not to write, as a regular expression, and what to write instead."""


def pack_texts() -> dict[str, str]:
    """Python, Markdown and translations of the pack, by path."""
    names = [name for name in tracked() if name.startswith(PACK) and name.endswith((".py", ".md", ".json"))]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return pack_texts()


def found(pattern: str, texts: dict[str, str]) -> list[str]:
    """Where a pattern occurs, line breaks between words included."""
    spaced = re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name, text in texts.items()
        for match in spaced.finditer(text)
    ]


@pytest.mark.parametrize("pattern", REJECTED)
def test_rejected_words_do_not_occur(pattern, texts):
    assert found(pattern, texts) == [], f"write instead: {REJECTED[pattern]}"


def test_all_parts_of_the_pack_are_read(texts):
    assert all(any(name.startswith(part) for name in texts) for part in PACK)


def test_a_sentence_that_was_rejected_is_found():
    old = "speed-up by\narithmetic; K/V go on along their last change; made anew"
    assert [bool(found(pattern, {"old": old})) for pattern in REJECTED].count(True) == 3
