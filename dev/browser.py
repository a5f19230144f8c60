"""A headless Chromium and playwright-core, for the browser tests.

The tests use the system's Chromium: the one at CHROMIUM_PATH if that variable is set, else the one on the
PATH. If there is none, Debian's package is installed, provided the user is root on Debian. The npm package
playwright-core is installed into `.host/browser`. It does not download a browser of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .paths import HOME
from .processes import say

PLAYWRIGHT = "1.65.1"
FOLDER = HOME / "browser"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DEBIAN_PACKAGES = ("chromium", "fonts-dejavu-core")


class NoBrowser(Exception):
    """There is no usable browser. The message gives the reason and says what the user can do about it."""


@dataclass(frozen=True)
class Browser:
    """Paths for a browser test: node, Chromium, and the folder with playwright-core in `node_modules`."""

    node: str
    chromium: str
    playwright: Path


def find() -> Browser:
    """Find an installed browser.

    Raises:
        NoBrowser: Node.js, Chromium or playwright-core is missing.
    """
    node, chromium = shutil.which("node"), find_chromium()
    if not node:
        raise NoBrowser("node is not on the PATH. Install Node.js 18 or newer, with npm.")
    if not chromium:
        told = os.environ.get("CHROMIUM_PATH") or "none of " + ", ".join(CHROMIUM_NAMES)
        raise NoBrowser(f"there is no Chromium ({told}). Install it, or set CHROMIUM_PATH to its path.")
    if playwright_version() != PLAYWRIGHT:
        raise NoBrowser(f"playwright-core {PLAYWRIGHT} is not in {FOLDER}. Run `make test-browser`.")
    return Browser(node, chromium, FOLDER)


def prepare() -> Browser:
    """Find a browser, after installing Chromium and playwright-core if they are missing.

    Raises:
        NoBrowser: one of the programs is missing and cannot be installed.
    """
    if not (find_chromium() or os.environ.get("CHROMIUM_PATH")) and may_install_chromium():
        install_chromium()
    if shutil.which("node") and find_chromium() and playwright_version() != PLAYWRIGHT:
        install_playwright()
    return find()


def find_chromium() -> str | None:
    """Path of the Chromium to use, or None if there is none."""
    given = os.environ.get("CHROMIUM_PATH")
    return shutil.which(given) if given else next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def playwright_version() -> str | None:
    """The version of playwright-core installed in FOLDER, or None."""
    try:
        package = FOLDER / "node_modules" / "playwright-core" / "package.json"
        return json.loads(package.read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return None


def may_install_chromium() -> bool:
    """Whether this tool may install Chromium: only as root on Debian.

    On other systems the package has another name, or its installation needs snapd.
    """
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return "ID=debian" in release and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_chromium() -> None:
    """Install Debian's package of Chromium."""
    say("dev: installing Debian's Chromium for the browser tests")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES]):
        if subprocess.run(["apt-get", *command], stdout=sys.stderr, env=environment).returncode:
            raise NoBrowser(f"apt-get {command[0]} failed; its output is above. Install Chromium by hand.")


def install_playwright() -> None:
    """Install playwright-core from npm's registry."""
    npm = shutil.which("npm")
    if not npm:
        raise NoBrowser("npm is not on the PATH. Install npm, which downloads playwright-core.")
    say(f"dev: installing playwright-core {PLAYWRIGHT} into .host/browser")
    FOLDER.mkdir(parents=True, exist_ok=True)
    install = [npm, "install", "--prefix", str(FOLDER), "--no-save", "--no-audit", "--no-fund", "--silent"]
    if subprocess.run([*install, f"playwright-core@{PLAYWRIGHT}"], stdout=sys.stderr).returncode:
        raise NoBrowser("npm failed; its output is above. Check the network and npm's settings.")
