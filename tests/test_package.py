"""The registry's archive: all files not excluded by .comfyignore. api/test_archive_server.py runs it."""

import json
import re
import struct
import zipfile

import pytest
from support.archive import LEFT_OUT, archive_files, tracked, write_archive
from support.comfy import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None

RAW = "https://raw.githubusercontent.com/multirate-ras/multirate-ras/main/"


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """The tracked files in the archive, chosen as by `comfy node pack`."""
    return archive_files()


@pytest.fixture(scope="module")
def project() -> dict:
    if tomllib is None:
        pytest.skip("reading pyproject.toml needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class TestContents:
    def test_no_tests_benchmarks_tools_or_training(self, archive):
        folders = ("tests/", "bench/", "dev/", "training/", ".ci/", ".github/", "assets/")
        assert [name for name in sorted(archive) if name.startswith(folders)] == []
        assert {"Makefile", ".gitignore", ".comfyignore"} & archive == set()

    def test_everything_that_a_user_needs(self, archive):
        needed = {
            "__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md",
            "demo/__init__.py", "demo/loader.py", "demo/prompt.py", "demo/NOTICE", "demo/MODEL_CARD.md",
        }  # fmt: skip
        assert needed - archive == set()
        folders = (
            "nodes", "ras_core", "lumina_next", "web", "locales", "example_workflows", "subgraphs",
            "demo/weights",
        )  # fmt: skip
        assert tracked("--cached", *folders) - archive == LEFT_OUT

    def test_only_known_folders(self, archive):
        """This test fails for a new folder, until it is decided whether the archive contains it."""
        known = {
            "nodes", "ras_core", "lumina_next", "web", "locales", "example_workflows", "subgraphs", "demo",
            "docs",
        }  # fmt: skip
        assert {name.split("/")[0] for name in archive if "/" in name} <= known

    def test_the_demo_folder_is_included_except_two_models(self, archive):
        """All other files of demo/ are in the archive, so that .comfyignore need not list more of them. Tools
        for the demo model belong into another folder.
        """
        assert tracked("--cached", "demo") - LEFT_OUT <= archive
        weights = {name for name in archive if name.startswith("demo/weights/")}
        assert weights == {"demo/weights/autoencoder.safetensors", "demo/weights/sd3.safetensors"}
        programs = {name for name in archive if name.startswith("demo/") and name.endswith(".py")}
        assert programs == {"demo/__init__.py", "demo/loader.py", "demo/prompt.py"}

    def test_every_template_has_the_demo_model_that_it_loads(self, archive):
        templates = [name for name in archive if re.fullmatch(r"example_workflows/.*\.json", name)]
        loaded = {name: _demo_families(name) for name in templates}
        assert loaded["example_workflows/ras_1_start_here.json"] == {"sd3"}
        for name, families in loaded.items():
            assert {f"demo/weights/{family}.safetensors" for family in families} <= archive, name

    def test_the_repository_keeps_what_the_archive_lacks(self):
        assert tracked("--cached") >= LEFT_OUT

    def test_only_whole_folders_and_repository_files_are_excluded(self):
        lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
        names = [line for line in lines if line and not line.startswith(("#", "!"))]
        own = {
            ".comfyignore", ".gitattributes", ".gitignore", "Makefile", "docs/*",
            "demo/weights/flux.safetensors", "demo/weights/lumina2.safetensors",
            "example_workflows/ras_lumina2_demo.*",
        }  # fmt: skip
        assert {name for name in names if not name.endswith("/")} == own

    def test_images_of_the_readme_are_included(self, archive):
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        pictures = {name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text) if "://" not in name}
        assert pictures - archive == set()

    def test_it_stays_small(self, tmp_path):
        """Below 25 MB, even without compression: tools of the registry may not compress."""
        assert write_archive(tmp_path / "node.zip").stat().st_size < 25e6

    def test_the_readme_gives_its_size(self, tmp_path):
        """The size compressed, in whole MB, and which demo models are left out."""
        size = write_archive(tmp_path / "node.zip", zipfile.ZIP_DEFLATED).stat().st_size
        install = (
            (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install\n")[2].partition("##")[0]
        )
        manager, clone = install.split("\n- ")[:2]
        assert abs(int(re.search(r"Downloads (\d+) MB", manager).group(1)) - size / 1e6) <= 1
        assert "without the demo models of Lumina 2 and Flux" in " ".join(manager.split())
        assert "with all demo models" in clone


class TestMetadata:
    def test_required_metadata_of_the_registry(self, project):
        about, comfy = project["project"], project["tool"]["comfy"]
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,98}", about["name"]) and "comfyui" not in about["name"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
        assert about["dependencies"] == [] and (ROOT / about["license"]["file"]).is_file()
        assert about["urls"]["Repository"].startswith("https://")
        assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"]

    def test_the_changelog_lists_the_version(self, project):
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        assert f"## {project['project']['version']}" in text

    def test_icon_and_banner(self, project):
        """The icon is square and at most 400 pixels wide. The banner has the aspect ratio 21:9."""
        comfy = project["tool"]["comfy"]
        assert comfy["Icon"].startswith(RAW) and comfy["Banner"].startswith(RAW)
        width, height = _png_size(comfy["Icon"].removeprefix(RAW))
        assert width == height <= 400
        width, height = _png_size(comfy["Banner"].removeprefix(RAW))
        assert width * 9 == height * 21


def _demo_families(name: str) -> set[str]:
    """The families that the nodes RASDemoModel of a workflow load."""
    nodes = json.loads((ROOT / name).read_text(encoding="utf-8"))["nodes"]
    return {node["widgets_values"][0] for node in nodes if node["type"] == "RASDemoModel"}


def _png_size(name: str) -> tuple[int, int]:
    head = (ROOT / name).read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:24])
