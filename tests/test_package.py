"""The archive that the registry would hold: what .comfyignore leaves, and that it is enough."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys

import pytest
from support.comfy import ROOT, comfy_path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None

RAW = "https://raw.githubusercontent.com/multirate-ras/multirate-ras/main/"

IMPORT = """
import asyncio, importlib.util, json, sys
sys.path.insert(0, {support!r})
from support import comfy
comfy.setup()
name = {folder!r}.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, {folder!r} + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules[name] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
nodes = {{node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}}
model, vae = nodes["RASDemoModel"].execute(family="sd3").args
nodes["RASDemoPrompt"].execute(text="noto owl on blue")
inputs = nodes["RASPatchModel"].GET_SCHEMA().inputs
defaults = {{item.id: item.default for item in inputs if getattr(item, "default", None) is not None}}
patched = nodes["RASPatchModel"].execute(model=model, **defaults)
own = [module.__file__ for key, module in sys.modules.items() if key.startswith(name) and module.__file__]
sys.stdout.write("\\n" + json.dumps({{"nodes": sorted(nodes), "files": own, "web": pack.WEB_DIRECTORY}}))
"""


def _git(*arguments: str) -> set[str]:
    """Paths that git lists. Its own exclude rules are the syntax of .comfyignore."""
    try:
        command = ["git", "ls-files", "-z", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """The tracked files that an archive holds, as `comfy node pack` chooses them."""
    return _git("--cached") - _git("--cached", "--ignored", "--exclude-from=.comfyignore")


@pytest.fixture(scope="module")
def project() -> dict:
    if tomllib is None:
        pytest.skip("reading pyproject.toml needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class TestContents:
    def test_nothing_of_tests_benchmarks_or_training(self, archive):
        folders = ("tests/", "bench/", "demo/train/", ".ci/", ".github/", "assets/")
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
        assert _git("--cached", *folders) - archive == set()

    def test_only_folders_that_were_decided_on(self, archive):
        """A new folder has to be thought about: does it travel?"""
        known = {
            "nodes", "ras_core", "lumina_next", "web", "locales", "example_workflows", "subgraphs", "demo",
            "docs",
        }  # fmt: skip
        assert {name.split("/")[0] for name in archive if "/" in name} <= known
        demo = {name for name in archive if name.startswith("demo/") and name.endswith(".py")}
        assert demo == {"demo/__init__.py", "demo/loader.py", "demo/prompt.py"}

    def test_pictures_of_the_readme_travel(self, archive):
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        pictures = {name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text) if "://" not in name}
        assert pictures - archive == set()

    def test_it_stays_small(self, archive):
        assert sum((ROOT / name).stat().st_size for name in archive) < 50 * 2**20


@pytest.mark.slow
def test_the_archive_alone_is_enough(archive, tmp_path):
    """Imported by ComfyUI's rules from a copy without the rest: nodes, demo model, patch."""
    folder = tmp_path / "multirate-ras"
    for name in archive:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    code = IMPORT.format(support=str(ROOT / "tests"), folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "COMFYUI_PATH": str(comfy_path())},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.rsplit("\n", 1)[-1])
    assert len(result["nodes"]) == 9
    assert all(path.startswith(str(folder)) for path in result["files"])
    assert (folder / result["web"] / "docs" / "RASPatchModel.md").is_file()


class TestMetadata:
    def test_what_the_registry_asks_for(self, project):
        about, comfy = project["project"], project["tool"]["comfy"]
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,98}", about["name"]) and "comfyui" not in about["name"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
        assert about["dependencies"] == [] and (ROOT / about["license"]["file"]).is_file()
        assert about["urls"]["Repository"].startswith("https://")
        assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"]

    def test_the_changelog_knows_the_version(self, project):
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        assert f"## {project['project']['version']}" in text

    def test_icon_and_banner(self, project):
        """Square and at most 400 pixels wide; 21:9."""
        comfy = project["tool"]["comfy"]
        assert comfy["Icon"].startswith(RAW) and comfy["Banner"].startswith(RAW)
        width, height = _png_size(comfy["Icon"].removeprefix(RAW))
        assert width == height <= 400
        width, height = _png_size(comfy["Banner"].removeprefix(RAW))
        assert width * 9 == height * 21


def _png_size(name: str) -> tuple[int, int]:
    head = (ROOT / name).read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:24])
