"""Help pages and translations must match the schemas: a new input without help fails here."""

import asyncio
import importlib
import json
import re

import pytest
import torch
from support.comfy import PACK, ROOT

DOCS = ROOT / "web" / "docs"
LOCALES = ("en", "de", "ja", "zh")
FASTER = {"en": "faster", "de": "schneller|Beschleunigt", "ja": "速", "zh": "更快|加快"}
"""What people search for who want to save time."""

ONLY_CUSTOM = "With speed `custom` only:"
SEED_CONTROL = "control_after_generate"
"""A widget that ComfyUI's interface adds after a seed; it has a name but no tooltip."""


def _schemas() -> dict:
    extension = asyncio.run(importlib.import_module(f"{PACK}.nodes").comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    return {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in nodes}


SCHEMAS = _schemas()


def schema_texts(schema) -> dict:
    """A node's texts in the form of ComfyUI's nodeDefs.json."""
    inputs = {}
    for item in schema.inputs:
        inputs[item.id] = {"name": item.display_name or item.id, "tooltip": item.tooltip}
        if getattr(item, SEED_CONTROL, None):
            inputs[SEED_CONTROL] = {"name": SEED_CONTROL.replace("_", " ")}
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": {
            str(i): {"name": output.display_name, "tooltip": output.tooltip}
            for i, output in enumerate(schema.outputs)
        },
    }


TEXTS = {node_id: schema_texts(schema) for node_id, schema in SCHEMAS.items()}


def locale(language: str, name: str = "nodeDefs") -> dict:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def flat(tree: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """The tree as one dict, whose keys are paths, for example ("RASTrace", "inputs", "model", "name")."""
    found = {}
    for key, value in tree.items():
        found.update(flat(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value})
    return found


def page(node_id: str) -> str:
    return (DOCS / f"{node_id}.md").read_text(encoding="utf-8")


def listed_inputs(text: str) -> dict[str, str]:
    """The inputs that a page lists, each with its text: items such as "- **speed**: how fast"."""
    section = text.partition("\n## Inputs\n")[2].partition("\n## ")[0]
    items = re.findall(r"^- \*\*([\w, ]+)\*\*: (.*)$", section, re.MULTILINE)
    return {name.strip(): text for names, text in items for name in names.split(",")}


PLAN = {"en": "plan", "de": "Plan", "ja": "プラン", "zh": "方案"}


class TestPages:
    def test_a_page_for_every_node_and_no_other(self):
        assert {path.stem for path in DOCS.glob("*.md")} == set(SCHEMAS)

    @pytest.mark.parametrize("node_id", SCHEMAS)
    def test_a_page_names_every_input_and_output(self, node_id):
        text = page(node_id)
        assert text.startswith(f"# {SCHEMAS[node_id].display_name}\n")
        assert set(listed_inputs(text)) == {item.id for item in SCHEMAS[node_id].inputs}
        missing = [o.display_name for o in SCHEMAS[node_id].outputs if f"**{o.display_name}**" not in text]
        assert not missing, f"{node_id}.md does not name the outputs {missing}"
        assert "## Limits" in text

    @pytest.mark.parametrize("node_id", SCHEMAS)
    def test_a_page_is_short_and_says_first_what_to_do(self, node_id):
        text = page(node_id)
        assert len(text.split()) <= 450
        heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert heads[:3] == ["What to do first", "Inputs", "Outputs"] and heads[-1] == "Limits"
        questions = text.partition("\n## Questions\n")[2].partition("\n## ")[0]
        assert len(re.findall("^- ", questions, re.MULTILINE)) <= 3
        items = text.partition("\n## Inputs\n")[2].partition("\n## ")[0].splitlines()
        assert all(line.startswith("- ") or line in ("", ONLY_CUSTOM) for line in items), "one line each"

    @pytest.mark.parametrize("node_id", SCHEMAS)
    def test_the_pages_in_all_languages_link_to_the_detailed_help(self, node_id):
        """A link must lead to a section that exists. The front end opens it in a new tab."""
        from ras_pack.dev.help_pages import long_page

        sections = re.findall("^##+ (.+)$", (ROOT / "docs" / "nodes.md").read_text("utf-8"), re.MULTILINE)
        anchors = {title.lower().replace(" ", "-") for title in sections}
        address, _, anchor = long_page(node_id).partition("#")
        assert address.endswith("/multirate-ras/blob/main/docs/nodes.md")
        assert anchor in anchors
        for language in LOCALES:
            text = (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")
            assert set(re.findall(r"/docs/nodes\.md#([\w-]+)\)", text)) <= anchors
            assert text.rstrip().endswith(f"]({long_page(node_id)})")

    @pytest.mark.parametrize("language", LOCALES)
    @pytest.mark.parametrize("node_id", ["RASPatchModel", "RASKSampler", "RASCompare", "RASMaskPreview"])
    def test_words_of_the_live_view_and_the_summary_are_explained(self, node_id, language):
        """In the words of web/words.js, and of the summary image, which is in English."""
        text = (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")
        words = (ROOT / "web" / "words.js").read_text(encoding="utf-8")
        shown = words.partition(f"  {language}: {{")[2]
        explained = [re.search(rf'{key}: "([^"]+)"', shown)[1] for key in ("regional", "dense", "reset")]
        explained += {"en": ["tokens"], "de": ["Token"], "ja": ["トークン"], "zh": ["token"]}[language]
        has_plan = node_id != "RASMaskPreview"
        explained += [PLAN[language]] if has_plan else ["mean region score"]
        assert [word for word in explained if not re.search(rf"^- \*{word}\*", text, re.MULTILINE)] == []

    @pytest.mark.parametrize("language", LOCALES)
    @pytest.mark.parametrize("node_id", ["RASMaskPreview", "RASPaperSettings"])
    def test_pages_say_from_which_number_steps_are_counted(self, node_id, language):
        text = (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")
        assert re.search(r"\b12\b.*\b13\b", text)

    @pytest.mark.parametrize("language", [name for name in LOCALES if name != "en"])
    def test_options_of_an_input_are_a_list_of_their_own(self, language):
        text = (DOCS / "RASKSampler" / f"{language}.md").read_text(encoding="utf-8")
        options = re.findall(r"^  - (\w+)(?:: |：)", text, re.MULTILINE)
        assert options == ["gpu", "fp8", "cpu", "forecast", "off", "auto"]

    @pytest.mark.parametrize("node_id", SCHEMAS)
    def test_images_and_links(self, node_id):
        """The front end finds relative image paths in web/docs, but cannot resolve relative links. So every
        link must be a full address.
        """
        text = page(node_id)
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
            path = DOCS / picture
            assert path.is_file() and path.stat().st_size < 150_000
        links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
        assert all(link.startswith("https://") for link in links)

    @pytest.mark.parametrize("node_id", SCHEMAS)
    def test_choices_in_code_spans_exist(self, node_id):
        """Every recommended value in the lists is an option of its input."""
        inputs = SCHEMAS[node_id].inputs
        options = {item.id: item.options for item in inputs if getattr(item, "options", None)}
        for name, text in listed_inputs(page(node_id)).items():
            good = text.partition("*Good:* ")[2]
            if name in options:
                assert good and set(re.findall(r"`([^`]+)`", good)) <= set(options[name]), (node_id, name)

    @pytest.mark.parametrize("node_id", SCHEMAS)
    def test_a_page_fits_the_narrow_help_panel(self, node_id):
        """The front end's panel is 262 px wide: no tables, and no code that cannot be broken."""
        text = page(node_id)
        assert not re.search(r"^\|", text, re.MULTILINE)
        assert max(map(len, re.findall(r"`([^`]+)`", text)), default=0) <= 36

    def test_the_pages_in_each_language_are_up_to_date(self):
        """`python -m dev.help_pages` writes them. The front end asks for the page of a language first."""
        from ras_pack.dev.help_pages import pages

        expected = pages()
        assert set(expected) == set(DOCS.glob("*/*.md"))
        stale = [path.name for path, text in expected.items() if path.read_text(encoding="utf-8") != text]
        assert stale == []
        assert {path.stem for path in expected} == set(LOCALES)

    def test_gains_of_the_starting_points_are_the_computed_ones(self):
        text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
        pattern = r"^\|[^|]+\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+)× \|"
        rows = re.findall(pattern, text, re.MULTILINE)
        assert len(rows) == 8
        for steps, start, ratio, share, gain in rows:
            expected_share, expected_gain = _expected(int(steps), float(start), float(ratio))
            assert (share, gain) == (f"{100 * expected_share:.1f}", f"{expected_gain:.2f}")

    def test_the_defaults_are_a_starting_point(self):
        defaults = {item.id: getattr(item, "default", None) for item in SCHEMAS["RASPatchModel"].inputs}
        settings = {"sample_ratio": 0.5, "error_reset_every": 0, "start_percent": 0.2}
        assert settings.items() <= defaults.items()
        text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
        assert "\n| the defaults | 28 | 0.2 | 0.5 |" in text


def _expected(steps: int, start: float, ratio: float) -> tuple[float, float]:
    """The mean share of active tokens, and the speed-up over a dense run of 28 steps, computed for SD3-medium
    at 1024 px with 154 text tokens.
    """
    config = importlib.import_module(f"{PACK}.ras_core.config")
    cost = importlib.import_module(f"{PACK}.ras_core.models.cost")
    schedule = importlib.import_module(f"{PACK}.ras_core.method.schedule")
    n_tokens = 64 * 64
    settings = config.RASConfig(sample_ratio=ratio, error_reset_every=0)
    settings = config.Window(start).of_run(settings, steps)
    counts = [step.active_count(n_tokens) for step in schedule.plan_steps(steps, settings)]
    gain = cost.expected_speedup(_sd3_medium(), n_tokens, 154, counts)
    return sum(counts) / len(counts) / n_tokens, gain * 28 / steps


def _sd3_medium():
    """The cost of ComfyUI's MMDiT in SD3-medium's size, created without allocating memory."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    adapters = importlib.import_module(f"{PACK}.ras_core.models")
    network = MMDiT(
        input_size=None, num_patches=192 * 192, pos_embed_max_size=192, pos_embed_scaling_factor=None,
        patch_size=2, in_channels=16, depth=24, adm_in_channels=2048,
        context_embedder_config={
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}
        },
        device=torch.device("meta"), dtype=torch.float16, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return adapters.adapter_for(network).cost_profile(network)


def lists_of_styles() -> dict[str, str]:
    """Each text that tells the user the styles of the demo models, by where it is."""
    named = {name: locale(name)["RASDemoPrompt"]["inputs"]["text"]["tooltip"] for name in LOCALES}
    pages = [ROOT / "docs" / "nodes.md", DOCS / "RASDemoPrompt.md", *(DOCS / "RASDemoPrompt").iterdir()]
    texts = {str(path): path.read_text(encoding="utf-8") for path in pages}
    for path in (ROOT / "example_workflows").glob("*.json"):
        texts[str(path)] = path.read_text(encoding="utf-8")
    return named | {name: text for name, text in texts.items() if "twemoji" in text}


def test_all_styles_of_the_demo_models_are_listed():
    """As in the model card, without `clipart`, which is a style of the model flux only."""
    card = (ROOT / "demo" / "MODEL_CARD.md").read_text(encoding="utf-8")
    styles = re.findall(r"`(\w+)`", re.search(r"^- Styles: (.+);", card, re.MULTILINE)[1])
    lists = lists_of_styles()
    assert len(lists) == 12 and "classic" in styles
    assert [(name, style) for name, text in lists.items() for style in styles if style not in text] == []


class TestLocales:
    def test_there_are_only_files_that_comfyui_reads(self):
        known = {"main.json", "nodeDefs.json", "commands.json", "settings.json"}
        assert {path.name for path in (ROOT / "locales").iterdir()} == set(LOCALES)
        for path in (ROOT / "locales").rglob("*.json"):
            assert path.name in known
            assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)

    def test_english_is_the_schema(self):
        assert locale("en") == TEXTS

    @pytest.mark.parametrize("language", LOCALES)
    def test_the_same_keys_as_the_schema(self, language):
        texts, expected = flat(locale(language)), flat(TEXTS)
        assert sorted(expected.keys() - texts.keys()) == [], "not translated"
        assert sorted(texts.keys() - expected.keys()) == [], "not in the schema"
        assert [key for key, text in texts.items() if not text.strip()] == []

    @pytest.mark.parametrize("language", LOCALES)
    def test_no_text_contains_placeholders_of_the_interface(self, language):
        """{ } @ and | have a special meaning in the interface's message format."""
        assert {key: text for key, text in flat(locale(language)).items() if re.search(r"[{}@|]", text)} == {}

    @pytest.mark.parametrize("language", LOCALES)
    @pytest.mark.parametrize("node_id", ["RASKSampler", "RASPatchModel"])
    def test_the_first_sentence_says_that_the_node_is_faster(self, node_id, language):
        first = re.split(r"[.:。：]", locale(language)[node_id]["description"])[0]
        assert re.search(FASTER[language], first), first

    @pytest.mark.parametrize("language", [name for name in LOCALES if name != "en"])
    def test_sentences_are_translated(self, language):
        texts, english = flat(locale(language)), flat(TEXTS)
        untouched = [key for key in english if len(english[key].split()) > 3 and texts[key] == english[key]]
        assert untouched == []

    @pytest.mark.parametrize("language", LOCALES)
    def test_one_translation_for_one_meaning(self, language):
        """The same English sentence has the same translation in all nodes."""
        texts, english = flat(locale(language)), flat(TEXTS)
        seen: dict[str, str] = {}
        for key in english:
            if key[-1] == "tooltip":
                assert seen.setdefault(english[key], texts[key]) == texts[key], key

    def test_german_texts_quote_the_names_of_nodes_and_inputs(self):
        """Each quoted name is one that the interface shows, and no node is named without quotes."""
        texts = flat(locale("de"))
        nodes = {text for key, text in texts.items() if key[-1] == "display_name"}
        names = nodes | {text for key, text in texts.items() if key[-1] == "name"}
        words = (ROOT / "web" / "words.js").read_text(encoding="utf-8").partition("  de: {")[2]
        sentences = [text for key, text in texts.items() if key[-1] in ("description", "tooltip")]
        sentences.append(words.partition("  ja: {")[0])
        quoted = {name for text in sentences for name in re.findall("„([^“]+)“", text)}
        assert quoted - names == {"noto grinning face on blue"}, "a prompt is the only other quotation"
        bare = [re.sub("„[^“]+“", "", text) for text in sentences]
        assert [(name, text) for name in nodes for text in bare if name in text] == []

    def test_settings_of_the_interface(self):
        """The English texts of the pack's settings equal those in web/*.js. The front end looks up a
        setting's translation by its id, with _ instead of dots.
        """
        scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").rglob("*.js"))
        ids = {name.replace(".", "_") for name in re.findall(r'"(MultirateRAS\.[\w.]+)"', scripts)}
        settings = {language: locale(language, "settings") for language in LOCALES}
        for language in LOCALES:
            assert set(settings[language]) == ids
            texts, english = flat(settings[language]), flat(settings["en"])
            assert texts.keys() == english.keys() and all(texts.values())
            assert language == "en" or all(texts[key] != english[key] for key in texts)
        assert [text for text in flat(settings["en"]).values() if f'"{text}"' not in scripts] == []

    def test_comfyui_reads_them(self, tmp_path, monkeypatch):
        """ComfyUI's own code finds the translations of all nodes, with the pack as the only custom node."""
        import folder_paths
        from app.custom_node_manager import CustomNodeManager

        (tmp_path / "multirate-ras").symlink_to(ROOT, target_is_directory=True)
        monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path)])
        translations = CustomNodeManager().build_translations()
        assert {language: set(translations[language]["nodeDefs"]) for language in LOCALES} == {
            language: set(SCHEMAS) for language in LOCALES
        }


@pytest.mark.server
def test_a_server_serves_them(server):
    """A server sends translations and help pages at the addresses that the front end requests: /i18n, and the
    folder that is part of the node's module name.
    """
    from ras_pack.dev.server import fetch

    nodes = json.loads(fetch(f"{server.url}/i18n"))["zh"]["nodeDefs"]
    assert nodes["RASTrace"] == locale("zh")["RASTrace"]
    folder = server.object_info["RASTrace"]["python_module"].split(".")[1]
    assert fetch(f"{server.url}/extensions/{folder}/docs/RASTrace.md").decode() == page("RASTrace")
    assert fetch(f"{server.url}/extensions/{folder}/docs/img/summary.jpg").startswith(b"\xff\xd8")
