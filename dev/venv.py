"""The packages: `.host/venv`, created and repaired with pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .paths import VENV
from .processes import DevError, ask, run, say, writing_bytecode
from .requirements import IMPORTS, PACKAGES, TOOLS, TORCH, TORCHVISION, TORCHVISION_PLAIN
from .stamps import damage, fingerprint, inventory, part_problem, read_stamp, write_stamp


def venv_python() -> Path:
    """The interpreter of `.host/venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def interpreter() -> Path:
    """The interpreter for ComfyUI: COMFYUI_PYTHON if set, otherwise that of `.host/venv`."""
    given = os.environ.get("COMFYUI_PYTHON")
    # Not resolved: a virtual environment's python is a link, and is found by the link's path.
    return Path(given).expanduser().absolute() if given else venv_python()


def site_packages() -> Path:
    """The folder with the packages of `.host/venv`."""
    lib = "Lib" if os.name == "nt" else "lib/python{}.{}".format(*sys.version_info[:2])
    return VENV / lib / "site-packages"


def venv_recipe() -> str:
    """The fingerprint of everything that determines the contents of `.host/venv`."""
    return fingerprint(PACKAGES, TORCHVISION, TORCHVISION_PLAIN, sys.version_info[:2], sys.platform)


def missing_modules(python: Path, modules: tuple[str, ...]) -> str | None:
    """The quick check, without imports: the modules that this interpreter lacks, or that it does not run."""
    # An empty folder would be found as a namespace package, but without an origin.
    code = f"""from importlib.util import find_spec
def is_there(module):
    try: return getattr(find_spec(module), "origin", None) is not None
    except ModuleNotFoundError: return False  # of its parent package
print(*[m for m in {modules!r} if not is_there(m)])"""
    found = ask([str(python), "-c", code])
    if found is None:
        return f"{python} does not run"
    return f"{python} lacks {found}" if found else None


def import_error(python: Path, modules: tuple[str, ...]) -> str | None:
    """The thorough check: import every module. Returns the last line of the error."""
    code = f"""import importlib
for m in {modules!r}: assert importlib.import_module(m).__file__, m + ' is empty'"""
    command = [str(python), "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=writing_bytecode(os.environ))
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def venv_problem() -> str | None:
    """Why `.host/venv` must be created or repaired; None if it is complete."""
    stamp = read_stamp(VENV)
    return part_problem(stamp, venv_recipe(), venv_damage(stamp) if stamp else None)


def venv_damage(stamp: dict) -> str | None:
    """What has disappeared from `.host/venv` since its stamp was written."""
    missing = missing_modules(venv_python(), IMPORTS + TOOLS)
    return missing or damage(stamp["inventory"], inventory(site_packages()))


def distrust() -> None:
    """Remove the packages' stamp, so that the next build tries every import. Used after a server died."""
    (VENV / "stamp.json").unlink(missing_ok=True)


def make_venv() -> None:
    """Create or complete `.host/venv`; if its packages still cannot be imported, create it again."""
    stamp = read_stamp(VENV)
    if stamp and venv_damage(stamp):
        shutil.rmtree(VENV)  # pip trusts its own records and would not notice missing files
    distrust()
    fresh = not venv_runs()
    if fresh:
        create_venv()
    problem = install_packages()
    if problem and not fresh:
        say(f"dev: the packages do not import ({problem}); creating .host/venv again")
        create_venv()
        problem = install_packages()
    if problem:
        raise DevError(
            f"The packages in .host/venv were installed but do not import: {problem}. "
            f"ComfyUI needs {', '.join(IMPORTS)}. Check whether pip's sources have {TORCH} for this Python, "
            "or set COMFYUI_PATH and COMFYUI_PYTHON to a ComfyUI that runs."
        )
    write_stamp(VENV, venv_recipe(), inventory(site_packages()))


def venv_runs() -> bool:
    """Whether there is a usable environment with this version of Python."""
    code = "import sys; print(sys.version_info[:2])"
    return ask([str(venv_python()), "-c", code]) == str(sys.version_info[:2])


def create_venv() -> None:
    """Create an empty virtual environment. Without pip at first, which also works without ensurepip."""
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"dev: creating .host/venv with Python {sys.version.split()[0]}")
    run(
        [sys.executable, "-m", "venv", "--without-pip", str(VENV)],
        "Creating a virtual environment",
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
        "Install pip 22.3 or newer for the Python that runs make.",
    )
    return own


def pip_install() -> list[str]:
    """Command prefix for installing packages into `.host/venv`."""
    return [*pip(), "install", "--progress-bar", "off", "--no-compile", "--disable-pip-version-check"]


def install_packages() -> str | None:
    """Install everything, torchvision last; returns the modules that cannot be imported."""
    say("dev: installing packages (PyTorch is the large one)")
    install = pip_install()
    advice = "Check the network and pip's settings (pip config list), then run the same command again."
    run([*install, *PACKAGES], "Installing the packages", advice)
    install_torchvision([*install, "--no-deps"], advice)
    mend_torchaudio(site_packages())
    return import_error(venv_python(), IMPORTS + TOOLS)


def installed(package: str) -> str:
    """The version of a package in `.host/venv`; empty if it is not installed."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return ask([str(venv_python()), "-c", code]) or ""


def torchvision_candidates(torch_version: str, python: tuple[int, int]) -> tuple[str, ...]:
    """Versions of torchvision to try, best first.

    Its compiled ops only load with exactly the build of torch that they were compiled for. ComfyUI needs
    none of them, but it imports torchvision on start, and a newer torchvision without its ops cannot be
    imported. For a local build of torch (`+cpu`) there may be no matching one; then an old torchvision is
    used, which only warns.
    """
    local = torch_version.partition("+")[2]
    if local.startswith("cpu") and python <= (3, 11):
        return TORCHVISION, TORCHVISION_PLAIN
    return (TORCHVISION,)


def install_torchvision(install: list[str], advice: str) -> None:
    """Install the best torchvision that loads.

    `install` must ignore dependencies, or pip would replace torch with the version that an older torchvision
    requires.
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
        say(f"dev: {candidate} does not load with torch {torch} ({problem})")


def mend_torchaudio(packages: Path) -> None:
    """Remove torchaudio's compiled library if it does not load, as with a CPU build of torch.

    Without that file the rest of the package can be imported, which is all that ComfyUI needs to start.
    """
    libraries = list((packages / "torchaudio" / "lib").glob("_torchaudio*"))
    if libraries and import_error(venv_python(), ("torchaudio",)) is not None:
        for library in libraries:
            say(f"dev: torchaudio/lib/{library.name} does not load with this torch; removed")
            library.unlink()
