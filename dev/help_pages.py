"""Writes the help pages of the nodes in each language: web/docs/NODE/LANGUAGE.md.

ComfyUI's front end asks for the page of the user's language first, and then for web/docs/NODE.md, which is
written by hand, in English. The page NODE/en.md is a copy of it; in both, the front end resolves paths of
images from web/docs/. The pages in other languages contain the translated texts of locales/: what the node
does, its inputs and its outputs.

Run `python -m dev.help_pages` after you change a page or a text; otherwise a test fails.
"""

from __future__ import annotations

import json
from pathlib import Path

from .paths import ROOT

DOCS, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
HEADINGS = {
    "de": ("Eingänge", "Ausgänge", "Ausführliche Hilfe (auf Englisch)"),
    "ja": ("入力", "出力", "詳しいヘルプ（英語）"),
    "zh": ("输入", "输出", "详细帮助（英文）"),
}
PUNCTUATION = {"zh": ("：", "")}
"""The colon after a name, and what separates sentences, where they differ from ": " and " "."""

LONG_PAGE = "https://github.com/multirate-ras/multirate-ras/blob/main/web/docs/{}.md"


def pages() -> dict[Path, str]:
    """The text of every page in a node's folder, by path."""
    found = {}
    for path in sorted(DOCS.glob("*.md")):
        found[DOCS / path.stem / "en.md"] = path.read_text(encoding="utf-8")
        for language in HEADINGS:
            texts = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
            found[DOCS / path.stem / f"{language}.md"] = _translated(path.stem, texts[path.stem], language)
    return found


def _translated(node: str, texts: dict, language: str) -> str:
    inputs, outputs, more = HEADINGS[language]
    return "\n".join(
        [
            f"# {texts['display_name']}",
            texts["description"],
            "",
            f"## {inputs}",
            *(_line(item, language) for item in texts["inputs"].values()),
            "",
            f"## {outputs}",
            *(_line(item, language) for item in texts["outputs"].values()),
            "",
            f"[{more}]({LONG_PAGE.format(node)})",
            "",
        ]
    )


def _line(item: dict, language: str) -> str:
    """A list item; a text of several lines becomes one paragraph."""
    colon, space = PUNCTUATION.get(language, (": ", " "))
    text = space.join(item.get("tooltip", "").split("\n"))
    return f"- **{item['name']}**{colon}{text}" if text else f"- **{item['name']}**"


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
