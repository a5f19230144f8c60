"""The texts of the hint, the live view and RAS Compare, as web/words.js gives them in each language.

The script runs in Node.js, with a stand-in for the module of ComfyUI's front end that it imports.
"""

import re

import pytest
from ras_pack.ras_core.method.shares import percent
from support.node_js import run_page, web

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
import { percent, say, WORDS } from "./extensions/pack/words.js";
const asked = JSON.parse(readFileSync(0, "utf8"));
const texts = asked.map(([language, key, values]) => {
  app.extensionManager = { setting: { get: () => language } };
  return key === "percent" ? `${percent(values)} %` : say(key, values);
});
console.log(JSON.stringify({ texts, words: WORDS }));
"""


@pytest.fixture
def page(tmp_path):
    """Runs the script: answers with the texts of the given (language, key, values), and all words."""
    exported = web("words.js").replace("const WORDS", "export const WORDS")

    def ask(*asked):
        found = run_page(tmp_path, PAGE, (), asked, {"extensions/pack/words.js": exported})
        return found["texts"], found["words"]

    return ask


def test_german_numbers_have_a_decimal_comma(page):
    texts, _ = page(("de", "speed", {"speed": "1.93"}), ("en", "speed", {"speed": "1.93"}))
    assert texts == ["1,93× so schnell", "1.93× speed"]


def test_the_choice_of_a_speed_is_written_as_in_its_input(page):
    (text,), _ = page(("de", "measuredSource", {"speed": "1.5x", "dB": "31.4"}))
    assert "1.5x" in text and "31,4 dB" in text


def test_a_percent_sign_stays_on_the_line_of_its_number(page):
    languages, told = ("en", "de", "ja", "zh"), {"step": 17, "total": 17, "kind": "dense", "share": 82}
    keys = ("step", "caption", "time", "tokens")
    texts, words = page(*((language, key, told) for language in languages for key in keys))
    assert [text for text in texts if not re.search("82\u00a0?%", text)] == []
    assert all("%" in words["en"][key] for key in keys)


def test_shares_are_rounded_as_in_the_log(page):
    """The page gets four decimals: 0.774951 as 0.775. 0.285 is a little less in binary."""
    shares = [0.774951, 0.775, 0.285, 0.125, 0.0049, 1.0, *(i / 977 for i in range(978))]
    texts, _ = page(*(("en", "percent", round(share, 4)) for share in shares))
    assert texts == [percent(share) for share in shares]
    assert texts[:3] == ["78 %", "78 %", "29 %"]


def test_every_language_has_the_same_texts_and_values(page):
    _, words = page()

    def values(texts):
        return {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in texts.items()}

    assert {language: values(texts) for language, texts in words.items()} == {
        language: values(words["en"]) for language in ("en", "de", "ja", "zh")
    }
