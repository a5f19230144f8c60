"""A headless Chromium and playwright-core, for the browser tests.

Chromium is that of the system: CHROMIUM_PATH if set, else the one on the PATH. On Debian, it is installed if
the user is root. playwright-core is installed from npm into `.host/browser`; it never downloads a browser.
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
    """There is no usable browser; the message has the reason and what to do."""


@dataclass(frozen=True)
class Browser:
    """Paths that a test needs: the programs, and the folder whose `node_modules` contains playwright-core."""

    node: str
    chromium: str
    playwright: Path


def find() -> Browser:
    """Find an installed browser.

    Raises:
        NoBrowser: something is missing.
    """
    node, chromium = shutil.which("node"), find_chromium()
    if not node:
        raise NoBrowser("node is not on the PATH. Install Node.js 18 or newer, with npm.")
    if not chromium:
        told = os.environ.get("CHROMIUM_PATH") or "none of " + ", ".join(CHROMIUM_NAMES)
        raise NoBrowser(f"there is no Chromium ({told}). Install it, or set CHROMIUM_PATH to one.")
    if playwright_version() != PLAYWRIGHT:
        raise NoBrowser(f"playwright-core {PLAYWRIGHT} is not in {FOLDER}. Run `make test-browser`.")
    return Browser(node, chromium, FOLDER)


def prepare() -> Browser:
    """Find a browser; installs missing parts if possible.

    Raises:
        NoBrowser: something is missing and cannot be installed.
    """
    if not (find_chromium() or os.environ.get("CHROMIUM_PATH")) and may_install_chromium():
        install_chromium()
    if shutil.which("node") and find_chromium() and playwright_version() != PLAYWRIGHT:
        install_playwright()
    return find()


def find_chromium() -> str | None:
    """Path of the Chromium to use."""
    given = os.environ.get("CHROMIUM_PATH")
    return shutil.which(given) if given else next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def playwright_version() -> str | None:
    """The version of playwright-core in FOLDER."""
    try:
        package = FOLDER / "node_modules" / "playwright-core" / "package.json"
        return json.loads(package.read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return None


def may_install_chromium() -> bool:
    """Only as root on Debian: on other systems the package has another name, or needs snapd."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return "ID=debian" in release and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_chromium() -> None:
    """Debian's package."""
    say("dev: installing Debian's Chromium for the browser tests")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES]):
        if subprocess.run(["apt-get", *command], stdout=sys.stderr, env=environment).returncode:
            raise NoBrowser(f"apt-get {command[0]} failed; its output is above. Install Chromium by hand.")


def install_playwright() -> None:
    """playwright-core from npm's registry."""
    npm = shutil.which("npm")
    if not npm:
        raise NoBrowser("npm is not on the PATH. Install npm, which downloads playwright-core.")
    say(f"dev: installing playwright-core {PLAYWRIGHT} into .host/browser")
    FOLDER.mkdir(parents=True, exist_ok=True)
    install = [npm, "install", "--prefix", str(FOLDER), "--no-save", "--no-audit", "--no-fund", "--silent"]
    if subprocess.run([*install, f"playwright-core@{PLAYWRIGHT}"], stdout=sys.stderr).returncode:
        raise NoBrowser("npm failed; its output is above. Check the network and npm's settings.")
