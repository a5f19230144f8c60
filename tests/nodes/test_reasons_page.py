"""The sentences of runs in each language, as web/reasons.js gives them, and that it knows all of them.

The script runs in Node.js, with a stand-in for the module of ComfyUI's front end that it imports.
"""

import json
import re

import pytest
from ras_pack.nodes.mask_preview import NO_TRACE
from ras_pack.ras_core.errors import RegionalAbort
from ras_pack.ras_core.host.second_models import NO_EFFECT
from ras_pack.ras_core.host.traces import NO_RUN, NOT_PATCHED, OTHER_LATENT
from ras_pack.ras_core.kv.choose import GIB, Needs, Room, choose
from ras_pack.ras_core.kv.spec import CacheSize
from ras_pack.ras_core.method.plan import described
from ras_pack.ras_core.models.control import gathered_lists
from ras_pack.ras_core.run.passes import CHANGED_STEPS, OTHER_LEVELS
from support.node_js import run_page, web
from support.reasons import Sentences

LANGUAGES = ("en", "de", "ja", "zh")

SHOWN_ELSEWHERE = {NO_EFFECT, NO_RUN, NO_TRACE, NOT_PATCHED, OTHER_LATENT}
"""Sentences of traces without a run. Neither the live view nor RAS Compare shows them, but only the images of
RAS Mask Preview, which are in English."""

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
import { translated } from "./extensions/pack/reasons.js";
const asked = JSON.parse(readFileSync(0, "utf8"));
const texts = asked.map(([language, sentence]) => {
  app.extensionManager = { setting: { get: () => language } };
  return translated(sentence);
});
console.log(JSON.stringify(texts));
"""

VALUE = re.compile(r"\d+( [GM]iB)?")
"""A value of a sentence in `Sentences`, which is no sentence itself."""

QUOTES = {"cause", "reason", "shortfall", "tensor"}
"""Names of values that are always sentences, or parts of sentences, of reasons.js themselves."""


@pytest.fixture(scope="module")
def reasons() -> dict[str, dict[str, str]]:
    """The texts in reasons.js, by language and key."""
    found: dict[str, dict[str, str]] = {}
    for line in web("reasons.js").splitlines():
        if match := re.fullmatch(r"  (\w+): \{", line):
            texts = found.setdefault(match[1], {})
        elif match := re.fullmatch(r'    (\w+): (".*"),', line):
            assert match[1] not in texts, f"{match[1]} is in the list twice"
            texts[match[1]] = json.loads(match[2])
    return found


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return Sentences()


@pytest.fixture
def page(tmp_path):
    """Runs the script: answers with the translations of the given (language, sentence)."""
    return lambda *asked: run_page(tmp_path, PAGE, ("reasons.js", "words.js"), asked)


class Known:
    """The English texts of reasons.js, and those of them that were found in a sentence."""

    def __init__(self, texts: dict[str, str]):
        own = {key: re.split(r"\{\w+\}", text) for key, text in texts.items()}
        keys = sorted(texts, key=lambda key: -len("".join(own[key])))
        self._patterns = {key: re.compile("(.+?)".join(map(re.escape, own[key]))) for key in keys}
        self._names = {key: re.findall(r"\{(\w+)\}", text) for key, text in texts.items()}
        self.used: set[str] = set()

    def has(self, sentence: str) -> bool:
        """Whether a sentence, or each of several joined by semicolons, is in the list with all it quotes."""
        for key, pattern in self._patterns.items():
            if match := pattern.fullmatch(sentence):
                self.used.add(key)
                values = zip(self._names[key], match.groups(), strict=True)
                return all(
                    self.has(value) or (name not in QUOTES and VALUE.fullmatch(value))
                    for name, value in values
                )
        parts = sentence.split("; ")
        return any(
            self.has("; ".join(parts[:count])) and self.has("; ".join(parts[count:]))
            for count in range(1, len(parts))
        )


def test_every_language_has_the_same_texts_and_values(reasons):
    def values(texts):
        return {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in texts.items()}

    assert list(reasons) == list(LANGUAGES) and len(reasons["en"]) > 50
    assert {each: values(texts) for each, texts in reasons.items()} == dict.fromkeys(
        LANGUAGES, values(reasons["en"])
    )


def test_every_sentence_of_a_run_can_be_translated(reasons, sentences):
    known = Known(reasons["en"])
    missing = {
        text: where for text, where in sentences.found.items()
        if text not in SHOWN_ELSEWHERE and not known.has(text)
    }  # fmt: skip
    assert missing == {}, (
        "The live view would show these sentences in English to everybody (7 is a value). "
        "Add each to web/reasons.js, in all languages; then read the translations once more."
    )


def test_the_origin_of_every_sentence_is_found(sentences):
    assert sentences.unknown == [], (
        "These places pass a sentence to a run's trace, but tests/support/reasons.py does not find where it "
        "comes from. Pass a constant or an f-string, or make it follow the new way."
    )


def test_every_text_is_in_the_code(reasons, sentences):
    known = Known(reasons["en"])
    for sentence in sentences.found:
        known.has(sentence)
    assert reasons["en"].keys() - known.used == set(), (
        "No code makes these sentences: correct them, or remove them."
    )


def test_every_sentence_is_translated_as_a_whole(page, sentences):
    texts = sorted(sentences.found.keys() - SHOWN_ELSEWHERE)
    given = [(language, text) for language in LANGUAGES for text in texts]
    answers = dict(zip(given, page(*given), strict=True))
    assert [answers["en", text].replace("\u00a0%", " %") for text in texts] == texts
    english = re.compile(r"\b(the|of|and|node|is|are|steps|rows|tokens)\b")
    for language in LANGUAGES[1:]:
        found = {text: answers[language, text] for text in texts}
        assert [each for each in found.items() if each[0] == each[1] or english.search(each[1])] == []


def test_plans_and_numbers(page):
    plan = described("1.5x", [1.0] * 6 + [0.2] * 11, 28)
    shortfall = (
        "1.83x is all that 28 steps can reach, because the noise levels are kept: "
        "they are too close to each other"
    )
    texts = page(("de", plan), ("ja", plan), ("zh", f"{plan} (inpainting)"), ("de", shortfall))
    assert texts == [
        "1.5x: 17 Schritte statt 28, 6 vollständig, 48\u00a0% der Token",
        "1.5x: 28 → 17 ステップ、全計算 6、トークンの 48%",
        "1.5x：以 17 步代替 28 步，其中 6 步为完整步，计算 48% 的 token（局部重绘）",
        "mit 28 Schritten sind höchstens 1,83× erreichbar, weil die Rauschpegel beibehalten werden: "
        "sie liegen zu dicht beieinander",
    ]


def test_sizes_of_memory(page):
    size = CacheSize(numbers=5 * GIB // 4, rows=4096, tokens=4096, largest=1024, itemsize=2)
    small, least = Room(2 * GIB, GIB * 8), Room(GIB // 10, GIB // 10)
    reasons = [choose("auto", Needs(size), room).reason for room in (small, least)]
    fallback, none = page(*(("de", reason) for reason in reasons))
    assert fallback.startswith("der K/V-Cache wird als fp8 gehalten (1,")
    assert fallback.endswith(", weil 2,50 GiB nicht in 2,00 GiB freien GPU-Speicher passen")
    assert none == (
        "der Speicher reicht nicht für den K/V-Cache: 2,50 GiB passen weder in 0,10 GiB freien GPU-Speicher "
        "noch in 0,10 GiB freien Arbeitsspeicher"
    )


def test_sentences_that_follow_each_other(page):
    both = f"running dense from here: {CHANGED_STEPS.format(28, 10)}{OTHER_LEVELS}"
    (german,) = page(("de", both))
    assert german.startswith("ab hier alle Schritte vollständig: ein anderer Node hat")
    assert "von 28 auf 10" in german
    assert "; das Ergebnis hat möglicherweise einen anderen Rauschpegel als ohne RAS" in german
    (chinese,) = page(("zh", "not an image latent; something else; the sampler had no step to run"))
    assert chinese == "不是图像的 Latent；something else; 采样器没有要运行的步"


def test_names_and_unknown_sentences_stay(page):
    with pytest.raises(RegionalAbort) as error:
        gathered_lists({"odd": [1]}, ("input",), None, 4)
    asked = [
        "another node's hook changes rows of RMSNorm, and may rely on the rows of all tokens",
        f"running dense from here: {error.value}",
        "running dense from here: another pack's words",
        "another pack's words",
        "",
    ]
    assert page(*(("de", each) for each in asked)) == [
        "ein Hook eines anderen Nodes ändert Zeilen von RMSNorm und ist möglicherweise auf die Zeilen aller "
        "Token angewiesen",
        "ab hier alle Schritte vollständig: ein ControlNet hat Residuen einer unbekannten Art: ['odd']",
        "ab hier alle Schritte vollständig: another pack's words",
        "another pack's words",
        "",
    ]
    (french,) = page(("fr", asked[0]))
    assert french == asked[0]
