"""The texts of the hint, the live view and RAS Compare, as web/words.js gives them in each language.

The script runs in Node.js, with a stand-in for the module of ComfyUI's front end that it imports.
"""

import json
import re
import shutil
import subprocess

import pytest
from support.comfy import ROOT

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
import { say, WORDS } from "./extensions/pack/words.js";
const asked = JSON.parse(readFileSync(0, "utf8"));
const texts = asked.map(([language, key, values]) => {
  app.extensionManager = { setting: { get: () => language } };
  return say(key, values);
});
console.log(JSON.stringify({ texts, words: WORDS }));
"""


@pytest.fixture
def page(tmp_path):
    """Runs the script: answers with the texts of the given (language, key, values), and all words."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    words = (ROOT / "web" / "words.js").read_text(encoding="utf-8")
    files = {
        "scripts/app.js": "export const app = {};",
        "page.js": PAGE,
        "package.json": '{"type": "module"}',
        "extensions/pack/words.js": words.replace("const WORDS", "export const WORDS"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def ask(*asked):
        run = subprocess.run(
            ["node", "page.js"],
            cwd=tmp_path, input=json.dumps(asked), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        return found["texts"], found["words"]

    return ask


def test_german_numbers_have_a_decimal_comma(page):
    texts, _ = page(("de", "speed", {"speed": "1.93"}), ("en", "speed", {"speed": "1.93"}))
    assert texts == ["1,93× so schnell", "1.93× speed"]


def test_the_choice_of_a_speed_is_written_as_in_its_input(page):
    (text,), _ = page(("de", "measuredSource", {"speed": "1.5x", "dB": "31.4"}))
    assert "1.5x" in text and "31,4 dB" in text


def test_every_language_has_the_same_texts_and_values(page):
    _, words = page()

    def values(texts):
        return {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in texts.items()}

    assert {language: values(texts) for language, texts in words.items()} == {
        language: values(words["en"]) for language in ("en", "de", "ja", "zh")
    }
