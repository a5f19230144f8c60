"""The README and the pages in docs/: length, links, and tables that are computed or copied from results."""

import csv
import importlib
import re
from pathlib import Path

import pytest
import torch
from support.archive import tracked
from support.comfy import PACK, ROOT

README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.md",
        "docs/*.md",
        "bench/*.md",
        "bench/results/**/*.md",
        "demo/*.md",
        "ras_core/**/*.md",
    )
    for path in ROOT.glob(pattern)
)

NETWORKS = {
    "SD3-medium": "sd3_medium", "SD3.5 medium": "sd35_medium", "SD3.5 large": "sd35_large",
    "Lumina-Image-2.0": "lumina2", "Lumina-Next": "lumina_next", "Z-Image": "z_image",
    "Flux.1 dev": "flux_dev",
}  # fmt: skip
"""The networks of the tables in docs/memory.md, and their names in bench/common/shapes.py."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text_of(name), flags=re.MULTILINE | re.DOTALL)


def links(name: str) -> list[str]:
    """The addresses of all links and images on a page that point into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    return [address for address in found if not address.startswith(("http://", "https://"))]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def table(name: str, head: str) -> dict[str, list[str]]:
    """The rows of the table whose first line begins with `head`, by their first cell."""
    lines = text_of(name).partition(f"\n{head}")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows, f"{name} has no table that begins with {head!r}"
    return {row[0]: row[1:] for row in rows}


class TestReadme:
    def test_it_has_fewer_than_900_words(self):
        assert len(README.read_text(encoding="utf-8").split()) < 900

    def test_it_names_the_blueprints(self):
        names = [path.stem for path in (ROOT / "subgraphs").glob("*.json")]
        assert names and all(f"*{name}*" in README.read_text(encoding="utf-8") for name in names)

    def test_it_links_to_every_page(self):
        pages = {name for name in PAGES if name.startswith("docs/")}
        assert pages - {link.partition("#")[0] for link in links("README.md")} == set()

    def test_its_figures_are_those_of_the_page_about_quality(self):
        detailed = {
            speed: [told.partition(":")[0] for told in row]
            for speed, row in table("docs/quality.md", "| speed | SD3 |").items()
        }
        rivals = table("docs/quality.md", "| PSNR, dB | 1.5x |")
        comfyui = rivals["the best of ComfyUI's schedulers `simple` and `beta`"]
        strongest = rivals["fewer dense steps with this pack's solver `ab2`, calibrated noise levels"]
        lines = table("README.md", "| speed | time |").items()
        for number, (speed, (time, *psnr, fewer, without)) in enumerate(lines):
            speed = speed.strip("`")
            assert [value.removesuffix(" dB") for value in psnr] == detailed[speed]
            assert (fewer, without.removesuffix(" dB")) == (strongest[number], comfyui[number])
            assert rivals["**the plan**"][number].strip("*") == " / ".join(detailed[speed])
            assert time == f"{100 / float(speed.removesuffix('x')):.0f} %"

    def test_every_footnote_is_defined_and_used(self):
        text = README.read_text(encoding="utf-8")
        defined = set(re.findall(r"^\[\^(\w+)\]:", text, re.MULTILINE))
        assert defined == set(re.findall(r"\[\^(\w+)\](?!:)", text))


LISTS = {
    "README.md": "**Models**", "CHANGELOG.md": "## 0.1.0", "docs/compatibility.md": "## Models",
    "docs/nodes.md": "### Models",
}  # fmt: skip
"""The pages that name all supported model families, and where their lists begin."""


@pytest.mark.parametrize("name", LISTS)
def test_it_names_every_family(name):
    listed = " ".join(text_of(name).partition(LISTS[name])[2].split()).replace("Lumina 2", "Lumina-Image-2.0")
    adapters = importlib.import_module(f"{PACK}.ras_core.models").ADAPTERS
    families = [re.sub(r" \(.*| Image$", "", each.family) for each in adapters]
    missing = {part for family in families for part in family.split(" / ") if part not in listed}
    assert missing == set()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    for link in links(name):
        address, _, anchor = link.partition("#")
        path = (ROOT / name).parent / address if address else ROOT / name
        assert path.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(path), f"{name} links to {link}"


class TestFigures:
    def test_psnr_of_the_plans(self):
        """The cells from which the table was made, and the plans of the pack."""
        plans = importlib.import_module(f"{PACK}.ras_core.method.family_plans").family_plans
        measured = (RESULTS / "2026-11-27-h100/speeds/cells.csv").read_text("utf-8")
        cells = list(csv.DictReader(measured.splitlines()))
        for speed, row in table("docs/quality.md", "| speed | SD3 |").items():
            for family, told in zip(("sd3", "lumina2", "flux"), row, strict=True):
                plan, dense = plans(family).best(speed), 0
                shape = f"{plan.steps} steps"
                if not plan.is_plain:
                    dense = len(plan.dense_steps)
                    shape += f" ({dense} dense, {100 * min(plan.shares):.0f} %)"
                found = {
                    f"{float(cell['psnr']):.1f}: {shape}"
                    for cell in cells
                    if (cell["family"], cell["steps"]) == (family, str(plan.steps))
                    and cell["method"] == ("dense" if plan.is_plain else "plan")
                    and [float(share or 0) for share in cell["shares"].split("+")].count(1) == dense
                }
                assert told in found, (speed, family)

    def test_sizes_of_the_kv_cache(self):
        formats = importlib.import_module(f"{PACK}.ras_core.kv.formats").FORMATS
        other_sizes = table("docs/memory.md", "| `gpu`, other sizes |")
        for network, row in table("docs/memory.md", "| 1024 × 1024 |").items():
            size = cache_size(NETWORKS[network], 1024)
            gpu, fp8, cpu, forecast, forecast2 = (
                gib(formats[name].nbytes(size)) for name in ("gpu", "fp8", "cpu", "forecast", "forecast2")
            )
            assert row == [gpu, fp8, f"0 ({cpu})", forecast, forecast2], network
            shown = [gib(cache_size(NETWORKS[network], pixels).plain_nbytes) for pixels in (512, 1536, 2048)]
            assert other_sizes[network] == shown, network


def cache_size(network: str, pixels: int):
    """The size of the K/V cache of one image, for a network of bench/common/shapes.py."""
    shape = importlib.import_module(f"{PACK}.bench.common.shapes").SHAPES[network]
    spec = importlib.import_module(f"{PACK}.ras_core.kv.spec")
    bare = shape._model(torch.device("meta")).diffusion_model
    profile = importlib.import_module(f"{PACK}.ras_core.models").adapter_for(bare).cache_profile(bare)
    n_tokens, texts = (pixels // 16) ** 2, shape.rows_in_network
    numbers, rows, largest = profile.counts(n_tokens, texts)
    return spec.CacheSize(numbers, rows, n_tokens * len(texts), largest, shape.dtype.itemsize)


def gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f}"


class TestCommittedResults:
    """The limits that bench/results/README.md states."""

    def test_plots_are_small_and_on_a_page(self):
        shown = {((ROOT / name).parent / link).resolve() for name in PAGES for link in links(name)}
        for path in RESULTS.rglob("*.png"):
            assert path.stat().st_size <= 60_000, path
            assert path in shown, f"no page links to {path}"

    def test_the_folder_stays_small(self):
        files = [ROOT / name for name in tracked("--cached", "bench/results")]
        assert sum(path.stat().st_size for path in files) < 2_000_000
        assert {path.suffix for path in files} <= {".md", ".png", ".csv", ".json", ".txt"}

    def test_every_folder_is_in_the_list(self):
        text = (RESULTS / "README.md").read_text(encoding="utf-8")
        assert {path.name for path in RESULTS.iterdir() if path.is_dir()} <= set(
            re.findall(r"\d{4}-\d\d-\d\d-\w+", text)
        )
