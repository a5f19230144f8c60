"""Writes the help pages of the nodes in each language: web/docs/NODE/LANGUAGE.md.

ComfyUI's front end asks for the page of the user's language first, and then for web/docs/NODE.md, which is
written by hand, in English. The page NODE/en.md is a copy of it; in both, the front end resolves paths of
images from web/docs/. The pages in other languages contain the translated texts of locales/: what the node
does, its inputs and its outputs, and the words that its images and its live view show. All pages are short,
and link to the node's section in docs/nodes.md.

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
PUNCTUATION = {"zh": "："}
"""The colon after a name, where it differs from ": "."""

LONG_PAGE = "https://github.com/multirate-ras/multirate-ras/blob/main/docs/nodes.md#{}"
"""The address of a node's section. The front end opens it in a new tab; a relative address would fail."""

WORDS_SHOWN = {
    **dict.fromkeys(
        ("RASPatchModel", "RASKSampler", "RASCompare"), ("dense", "regional", "tokens", "plan", "reset")
    ),
    "RASMaskPreview": ("dense", "regional", "reset", "tokens", "score", "numbers"),
}
"""The words of WORDS that a node, or the sampler node after it, shows in its live view or its images."""

WORDS = {
    "de": {
        "heading": "Begriffe in der Anzeige",
        "dense": "*vollständig* (dense): Der Schritt berechnet das ganze Bild, wie ohne RAS.",
        "regional": "*regional*: Der Schritt berechnet nur einen Teil des Bildes.",
        "tokens": "*Token*: Die Quadrate aus 16 × 16 Pixeln, die das Modell berechnet.",
        "plan": "*Plan*: Die Zahl der Schritte, ihre Rauschpegel und der Anteil der Token, den jeder "
        "berechnet; „Geschwindigkeit“ wählt ihn aus.",
        "reset": "*wieder vollständig* (dense again): Ein vollständiger Schritt nach regionalen; er "
        "beseitigt die Fehler ausgelassener Regionen.",
        "score": "*mean region score* (Linie, Achse rechts): die mittlere Punktzahl der Regionen, also wie "
        "stark sie sich seit ihrer letzten Berechnung wahrscheinlich verändert haben. Regionen mit hoher "
        "Punktzahl werden zuerst berechnet. Ein vollständiger Schritt setzt sie auf 0 (nicht mit „RAS "
        "Paper-Einstellungen“); sie steigt, solange Regionen ausgelassen werden, umso schneller, je stärker "
        "sie sich ändern.",
        "numbers": "Die Schritte sind hier ab 1 gezählt, bei „Fehler-Reset bei“ in „RAS Paper-Einstellungen“ "
        "(error_reset_steps) ab 0: Die 12 dort ist hier Schritt 13.",
    },
    "ja": {
        "heading": "表示される用語",
        "dense": "*全計算*（dense）: RAS なしの場合と同じく、画像全体を計算するステップ。",
        "regional": "*部分計算*（regional）: 画像の一部だけを計算するステップ。",
        "tokens": "*トークン*: モデルが計算する 16 × 16 ピクセルの正方形。",
        "plan": "*プラン*: ステップ数、そのノイズレベル、各ステップで計算するトークンの割合。"
        "「速度」で選ばれます。",
        "reset": "*再び全計算*（dense again）: 部分計算の後に入る全計算のステップ。"
        "計算を省いた領域の誤差をなくします。",
        "score": "*mean region score*（線、右の軸）: 最後に計算してから領域がどれだけ変化したと"
        "見込まれるかを表すスコアの、全領域の平均。"
        "スコアの高い領域から計算します。全計算のステップの直後は 0 になり（RAS 論文設定を使う場合を除く）、"
        "計算を省いた領域の変化が大きいほど速く上がります。",
        "numbers": "ステップはここでは 1 から数えますが、RAS 論文設定の「誤差リセット位置」"
        "（error_reset_steps）では 0 から数えます。そこでの 12 は、ここではステップ 13 です。",
    },
    "zh": {
        "heading": "界面中的用语",
        "dense": "*完整*（dense）：该步计算整幅图像，与不使用 RAS 时相同。",
        "regional": "*局部*（regional）：该步只计算图像的一部分。",
        "tokens": "*token*：模型计算的 16 × 16 像素的方块。",
        "plan": "*方案*：由“速度”选定的步数、噪波水平和每步计算的 token 比例。",
        "reset": "*再次完整*（dense again）：局部步之后的完整步，用于清除跳过的区域的误差。",
        "score": "*mean region score*（线条，右侧坐标轴）：各区域自上次计算以来"
        "估计变化了多少，取所有区域的平均值。"
        "得分高的区域先计算。完整步之后为 0（使用“RAS 论文设置”时除外）；跳过的区域变化越大，上升越快。",
        "numbers": "这里的步从 1 开始计数，而“RAS 论文设置”的“误差重置步”（error_reset_steps）从 0 开始计数："
        "那里的 12 就是这里的第 13 步。",
    },
}
"""One line for each word that the live view and the images show, in the words of web/words.js."""


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
            *_words(node, language),
            f"[{more}]({long_page(node)})",
            "",
        ]
    )


def long_page(node: str) -> str:
    """The address of the detailed help about a node."""
    english = json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    return LONG_PAGE.format(english[node]["display_name"].lower().replace(" ", "-"))


def _words(node: str, language: str) -> list[str]:
    """The section that explains the words that a node shows; empty if it shows none of them."""
    words = WORDS[language]
    lines = [f"- {words[word]}" for word in WORDS_SHOWN.get(node, ())]
    return [f"## {words['heading']}", *lines, ""] if lines else []


def _line(item: dict, language: str) -> str:
    """A list item. The further lines of a text, each about one option, become a list in this item."""
    colon = PUNCTUATION.get(language, ": ")
    text, *options = item.get("tooltip", "").split("\n")
    first = f"- **{item['name']}**{colon}{text}" if text else f"- **{item['name']}**"
    return "\n".join([first, *(f"  - {option}" for option in options)])


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
