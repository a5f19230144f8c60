"""The virtual environment `.host/venv` with the packages for ComfyUI, created and repaired with pip."""

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
    """Path of the interpreter for ComfyUI: COMFYUI_PYTHON if set, else the interpreter of `.host/venv`."""
    given = os.environ.get("COMFYUI_PYTHON")
    # Links are not resolved: the python of a virtual environment is a symlink, and Python finds the
    # environment's packages by the path of that link.
    return Path(given).expanduser().absolute() if given else venv_python()


def site_packages() -> Path:
    """The site-packages folder of `.host/venv`."""
    lib = "Lib" if os.name == "nt" else "lib/python{}.{}".format(*sys.version_info[:2])
    return VENV / lib / "site-packages"


def venv_recipe() -> str:
    """A hash of everything that determines the contents of `.host/venv`."""
    return fingerprint(PACKAGES, TORCHVISION, TORCHVISION_PLAIN, sys.version_info[:2], sys.platform)


def missing_modules(python: Path, modules: tuple[str, ...]) -> str | None:
    """Check quickly, without importing them, that an interpreter has these modules.

    Returns None if it has all of them. Otherwise returns a phrase for the user, which names the missing
    modules or says that the interpreter does not run.
    """
    # find_spec also finds an empty folder, as a namespace package, but such a package has no origin.
    code = f"""from importlib.util import find_spec
def is_there(module):
    try: return getattr(find_spec(module), "origin", None) is not None
    except ModuleNotFoundError: return False  # the parent package is missing
print(*[m for m in {modules!r} if not is_there(m)])"""
    found = ask([str(python), "-c", code])
    if found is None:
        return f"{python} does not run"
    return f"{python} lacks {found}" if found else None


def import_error(python: Path, modules: tuple[str, ...]) -> str | None:
    """Check thoroughly, by importing every module. If an import fails, returns the last line of its error
    message; if all succeed, returns None.
    """
    code = f"""import importlib
for m in {modules!r}: assert importlib.import_module(m).__file__, m + ' is empty'"""
    command = [str(python), "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=writing_bytecode(os.environ))
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def venv_problem() -> str | None:
    """Why `.host/venv` must be created or repaired, as a phrase for the user; None if it is complete."""
    stamp = read_stamp(VENV)
    return part_problem(stamp, venv_recipe(), venv_damage(stamp) if stamp else None)


def venv_damage(stamp: dict) -> str | None:
    """Which modules or files are missing from `.host/venv`, or changed, since its stamp was written."""
    missing = missing_modules(venv_python(), IMPORTS + TOOLS)
    return missing or damage(stamp["inventory"], inventory(site_packages()))


def distrust() -> None:
    """Remove the stamp of `.host/venv`, so that the next build checks every import.

    Called when a ComfyUI server did not start. The cause may be a broken package.
    """
    (VENV / "stamp.json").unlink(missing_ok=True)


def make_venv() -> None:
    """Create `.host/venv`, or complete it if it exists. If it existed and its packages cannot be
    imported even then, create it again from scratch.
    """
    stamp = read_stamp(VENV)
    if stamp and venv_damage(stamp):
        shutil.rmtree(VENV)  # pip would not notice missing files: it only reads its own metadata
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
    """Whether `.host/venv` exists, runs, and has the Python version of this process."""
    code = "import sys; print(sys.version_info[:2])"
    return ask([str(venv_python()), "-c", code]) == str(sys.version_info[:2])


def create_venv() -> None:
    """Create an empty `.host/venv`, which has no pip at first. Creating it without pip also works where
    ensurepip is missing.
    """
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"dev: creating .host/venv with Python {sys.version.split()[0]}")
    run(
        [sys.executable, "-m", "venv", "--without-pip", str(VENV)],
        "Creating a virtual environment",
        "Python's venv module is needed (on Debian and Ubuntu: apt install python3-venv).",
    )


def pip() -> list[str]:
    """Command prefix of a pip that installs into `.host/venv`.

    It is the pip of `.host/venv`, else that of this Python (22.3 or newer), else one that ensurepip installs.
    """
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
    """Install all packages. Returns the error if a module cannot be imported afterwards, else None."""
    say("dev: installing packages (PyTorch, the largest, takes a while)")
    install = pip_install()
    advice = "Check the network and pip's settings (pip config list), then run the same command again."
    run([*install, *PACKAGES], "Installing the packages", advice)
    install_torchvision([*install, "--no-deps"], advice)
    mend_torchaudio(site_packages())
    return import_error(venv_python(), IMPORTS + TOOLS)


def installed(package: str) -> str:
    """The version of a package in `.host/venv`; an empty string if the package is not installed."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return ask([str(venv_python()), "-c", code]) or ""


def torchvision_candidates(torch_version: str, python: tuple[int, int]) -> tuple[str, ...]:
    """Versions of torchvision to try, best first.

    The compiled ops of torchvision only load with the exact build of torch that they were compiled for.
    ComfyUI needs none of these ops, but it imports torchvision on start, and the import of a current
    torchvision fails if its ops do not load. For a CPU build of torch (`+cpu`) there may be no matching
    torchvision. An old torchvision is then used, which only prints a warning if its ops do not load.
    """
    local = torch_version.partition("+")[2]
    if local.startswith("cpu") and python <= (3, 11):
        return TORCHVISION, TORCHVISION_PLAIN
    return (TORCHVISION,)


def install_torchvision(install: list[str], advice: str) -> None:
    """Install the first of the candidate versions of torchvision that can be imported.

    The parameter `install` is the command prefix for installing packages. It must contain `--no-deps`.
    Otherwise pip would replace torch with the version that an older torchvision requires.
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
    """Remove torchaudio's compiled library if it does not load, which happens with a CPU build of torch.

    Without the library, the rest of torchaudio can be imported, and ComfyUI needs no more than that to start.
    """
    libraries = list((packages / "torchaudio" / "lib").glob("_torchaudio*"))
    if libraries and import_error(venv_python(), ("torchaudio",)) is not None:
        for library in libraries:
            say(f"dev: torchaudio/lib/{library.name} does not load with this torch; removed")
            library.unlink()
