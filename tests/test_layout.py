"""Rules for the source code: which package may import which, where ComfyUI may be used, the sizes of files
and functions, and text that no file may contain."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each part of ras_core may import from the others. A part is a package, or a module at the top.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "rows": set(),
    "method": {"config", "errors"},
    "models": {"rows", "errors"},
    "kv": {"rows", "config", "errors"},
    "graphs": {"kv", "errors"},
    "run": {"graphs", "kv", "models", "method", "rows", "config", "errors"},
    "host": {"run", "graphs", "kv", "models", "method", "rows", "config", "errors"},
    "render": {"run", "method"},
}
MOST_AT_THE_TOP = 8

# Sizes in ras_core, in lines and parameters (`self` and `cls` are not counted).
MOST_LINES_OF_A_FILE = 250
MOST_LINES_OF_A_FUNCTION = 46
USUAL_LINES_OF_A_FUNCTION = 25
SHARE_OF_USUAL_FUNCTIONS = 0.95
MOST_PARAMETERS = 6
KERNELS = ("triton_float8.py", "triton_forecasts.py", "triton_rows.py", "triton_spread.py")
"""Kernels take single numbers and addresses, so functions in these files may have more parameters."""

# Every package of the repository except the tests.
PACKAGES = ("ras_core", "nodes", "lumina_next", "demo", "dev", "bench", "training")
KNOWS_COMFY = {"host"}
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
    """Every import of a file, including those in functions: (level of relative import, dotted module)."""
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
    """The pack's modules that a file imports, as dotted names from the root: 'ras_core.rows'."""
    package = path.relative_to(ROOT).parent.parts
    names = []
    for level, module in imports(path):
        if level:
            names.append(".".join([*package[: len(package) - (level - 1)], *module.split(".")]))
    return names


def part(dotted: str) -> str:
    """The part of ras_core that a dotted name belongs to: 'models' of 'ras_core.models.sd3'."""
    return dotted.split(".")[1] if dotted.count(".") else ""


def dotted_name(path: Path) -> str:
    """'ras_core.models' of ras_core/models/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules("ras_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_in_ras_core_point_down(path):
    own = part(dotted_name(path))
    allowed = MAY_IMPORT[own] | {own} if own else set()  # fails for a module in no known part
    wrong = [name for name in inside(path) if name.split(".")[0] != "ras_core" or part(name) not in allowed]
    assert wrong == [], f"{own} may import {sorted(allowed)}"


def test_there_are_few_files_at_the_top():
    assert len(list((ROOT / "ras_core").glob("*.py"))) <= MOST_AT_THE_TOP


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if (ROOT / "ras_core" / name).is_dir()])
def test_each_package_has_a_page_that_names_its_modules(package):
    page = ast.get_docstring(ast.parse((ROOT / "ras_core" / package / "__init__.py").read_text("utf-8")))
    modules_of = {path.stem for path in (ROOT / "ras_core" / package).glob("*.py")} - {"__init__"}
    assert "Imports:" in page
    assert {name for name in modules_of if f"`{name}`" not in page} == set()


def test_there_are_no_import_cycles():
    """There are no import cycles between modules, even if imports inside functions are counted."""
    files = {dotted_name(path): path for folder in PACKAGES for path in modules(folder)}
    imported = {name: targets(path, files) - {name} for name, path in files.items()}
    while leaves := {name for name, names in imported.items() if not names & imported.keys()}:
        imported = {name: names for name, names in imported.items() if name not in leaves}
    assert sorted(imported) == []


def targets(path: Path, files: dict[str, Path]) -> set[str]:
    """The modules that a file imports, as dotted names. If a name is imported from a package and is a module
    of it, this module counts instead of the package.
    """
    package, found = path.relative_to(ROOT).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or (not node.level and node.module == "nodes"):
            continue  # without a dot, `nodes` is ComfyUI's module
        base = list(package[: len(package) - (node.level - 1)]) if node.level else []
        base += node.module.split(".") if node.module else []
        for name in node.names:
            full = ".".join([*base, name.name])
            found.add(full if full in files else ".".join(base))
    return found & files.keys()


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(folder: str) -> dict[str, Function]:
    """Every function and method by `path:name`."""
    return {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node
        for path in modules(folder)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, Function)
    }


def lines(function: Function) -> int:
    """Number of lines of a function, with its docstring but without decorators."""
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> int:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("folder", ["ras_core", "dev"])
def test_files_are_short(folder):
    counts = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in modules(folder)}
    assert {str(p.relative_to(ROOT)): n for p, n in counts.items() if n > MOST_LINES_OF_A_FILE} == {}


def test_functions_of_the_core_are_short():
    counts = {name: lines(function) for name, function in functions("ras_core").items()}
    assert {name: n for name, n in counts.items() if n > MOST_LINES_OF_A_FUNCTION} == {}
    long = [name for name, n in counts.items() if n > USUAL_LINES_OF_A_FUNCTION]
    assert len(long) <= (1 - SHARE_OF_USUAL_FUNCTIONS) * len(counts), long


def test_functions_of_the_core_have_few_parameters():
    counts = {name: parameters(f) for name, f in functions("ras_core").items()}
    many = [name for name, n in counts.items() if n > MOST_PARAMETERS]
    assert [name for name in many if not any(file in name for file in KERNELS)] == []


@pytest.mark.parametrize("path", modules("ras_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_package_host_imports_comfyui(path):
    own = part(dotted_name(path))
    comfy = [name for level, name in imports(path) if level == 0 and name.split(".")[0] in COMFY]
    assert not comfy or own in KNOWS_COMFY, f"{own} imports {comfy}"


@pytest.mark.parametrize(
    "path",
    [path for part in ("method", "kv", "graphs", "run", "render") for path in modules(f"ras_core/{part}")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_comfyuis_keys_are_only_in_the_package_host(path):
    keys = strings(ROOT / "ras_core" / "host" / "names.py")
    assert len(keys) > 10 and strings(path) & keys == set()


def strings(path: Path) -> set[str]:
    """The words in string literals of a file."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
    }


@pytest.mark.parametrize("path", modules("nodes"), ids=lambda p: p.name)
def test_nodes_use_only_the_public_modules(path):
    """Nodes are only an interface: they never import selection, tokens, state or adapters directly."""
    entry_points = ("ras_core.errors", "ras_core.config", "ras_core.host", "ras_core.render",
                    "ras_core.run.trace", "ras_core.run.live")  # fmt: skip
    reached = [
        name for name in inside(path) if name.startswith("ras_core.") and not name.startswith(entry_points)
    ]
    assert reached == []


@pytest.mark.parametrize("path", modules("lumina_next"), ids=lambda p: p.name)
def test_the_packs_own_network_does_not_depend_on_the_method(path):
    """The network in lumina_next/ is a model like ComfyUI's own. From ras_core it uses only the errors."""
    outside = {name for name in inside(path) if name.split(".")[0] != "lumina_next"}
    assert outside <= {"ras_core.errors"}


def test_the_pack_only_uses_relative_imports_of_itself():
    """ComfyUI imports the pack with its path as the module name, so `import ras_core` does not work."""
    own = {"ras_core", "lumina_next", "demo", "dev", "training", "bench", "multirate_ras", "ras_pack"}
    files = [*modules("ras_core"), *modules("lumina_next"), *modules("nodes"), ROOT / "__init__.py"]
    wrong = [
        (p.name, name) for p in files for level, name in imports(p) if not level and name.split(".")[0] in own
    ]
    assert wrong == []


# Built from parts, so that this file does not contain the text that it searches for.
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
