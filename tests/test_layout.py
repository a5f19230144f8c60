"""The house's rules, read from the source: where imports point, who knows ComfyUI, what no file may say."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The parts of ras_core from the ground up. Each may import from lower floors and from its own.
FLOORS = (
    {"errors", "schedule", "config", "clock", "graph_rules", "kv_choice", "network_identity"},
    {
        "tokens",
        "selection",
        "selector",
        "wishes",
        "metric",
        "cost",
        "kv",
        "kv_storage",
        "integrator",
        "budget",
        "grouped",
    },
    {"adapters", "forward", "graphs", "hooks", "state", "sampler", "trace", "live", "render", "compare"},
    {"host", "host_compiler"},
)
# Where ras_core may import ComfyUI: its face to it (with names of later versions), the pack's own networks.
KNOWS_COMFY = {"host", "host_compiler", "networks"}
COMFY = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "execution",
    "server",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file, also inside functions: (level of relative import, dotted module)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.level, node.module))
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, name.name) for name in node.names]
    return found


def inside(path: Path) -> list[str]:
    """What a file imports from this pack, as dotted names from the root: 'ras_core.tokens'."""
    package = path.relative_to(ROOT).parent.parts
    names = []
    for level, module in imports(path):
        if level:
            names.append(".".join([*package[: len(package) - (level - 1)], *module.split(".")]))
    return names


def part(dotted: str) -> str:
    """The part of ras_core a dotted name belongs to: 'adapters' of 'ras_core.adapters.sd3'."""
    return dotted.split(".")[1] if dotted.count(".") else ""


def floor(name: str) -> int | None:
    return next((i for i, names in enumerate(FLOORS) if name in names), None)


@pytest.mark.parametrize("path", modules("ras_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_in_ras_core_point_down(path):
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in inside(path):
        assert name.split(".")[0] == "ras_core", f"the method imports {name}: arrows point down only"
        here, there = floor(own), floor(part(name))
        if here is not None and there is not None:
            assert there <= here, f"{own} (floor {here}) imports {name} (floor {there})"
        elif there == len(FLOORS) - 1:
            assert own in KNOWS_COMFY, f"{own} imports {name}: only nodes look at the host part"


@pytest.mark.parametrize("path", modules("ras_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_host_part_knows_comfyui(path):
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    comfy = [name for level, name in imports(path) if level == 0 and name.split(".")[0] in COMFY]
    assert not comfy or own in KNOWS_COMFY, f"{own} imports {comfy}"


@pytest.mark.parametrize("path", modules("nodes"), ids=lambda p: p.name)
def test_nodes_meet_the_method_through_few_doors(path):
    """Nodes are faces: they never reach below the host part into selection, tokens, state or adapters."""
    below = {"tokens", "selection", "metric", "state", "adapters"}
    reached = [name for name in inside(path) if name.startswith("ras_core.") and part(name) in below]
    assert reached == []


@pytest.mark.parametrize("path", modules("lumina_next"), ids=lambda p: p.name)
def test_a_network_of_the_pack_knows_nothing_of_the_method(path):
    """It is a model like the host's; only the form of errors is shared."""
    outside = {name for name in inside(path) if name.split(".")[0] != "lumina_next"}
    assert outside <= {"ras_core.errors"}


def test_the_pack_imports_itself_relatively_only():
    """ComfyUI gives the pack its path as module name, so `import ras_core` works nowhere."""
    own = {"ras_core", "lumina_next", "demo", "multirate_ras", "ras_pack"}
    files = [*modules("ras_core"), *modules("lumina_next"), *modules("nodes"), ROOT / "__init__.py"]
    wrong = [
        (p.name, name) for p in files for level, name in imports(p) if not level and name.split(".")[0] in own
    ]
    assert wrong == []


# Built from parts, so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile(
    "|".join("/" + p + r"/[\w.-]" for p in ("home", "Users", "root", "work", "mnt", "opt"))
)


def tracked_text() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    endings = {".py", ".md", ".json", ".toml", ".txt", ".ini", ".js", ".mjs", ".yaml", ".yml", ".css", ""}
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.suffix in endings and path.is_file()]


def test_no_file_names_a_machines_path():
    found = {
        str(path.relative_to(ROOT)): match.group()
        for path in tracked_text()
        if (match := MACHINE_PATHS.search(path.read_text(encoding="utf-8", errors="ignore")))
    }
    assert found == {}
