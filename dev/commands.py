"""The command line of the development tools.

    python3 -m dev COMMAND [ARGUMENTS]    (from the repository's root)

`build` creates the dev environment, `build-old` the one with an older ComfyUI. `python` builds the dev
environment and prints the path of its Python interpreter. `compatibility` writes docs/compatibility.md. The
other commands are the Makefile's targets; see `make help`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import sys
from pathlib import Path

from . import paths
from .demo_options import command_line
from .environment import DevEnvironment, build, cpu_flag
from .paths import PACK, ROOT
from .processes import DevError, port_taken, replace_process, say
from .testing import compatibility, lint, soak, test, test_browser, test_old
from .tree import OLD_RELEASE, RELEASE, Release


def has_pack(comfyui: Path) -> bool:
    """Whether the user has already installed the pack in their ComfyUI."""
    folder = comfyui / "custom_nodes"
    return folder.is_dir() and any(p.name == PACK or p.resolve() == ROOT for p in folder.iterdir())


def serve_command(env: DevEnvironment, arguments: list[str]) -> list[str]:
    """The command line of a ComfyUI that the user opens in a browser."""
    command = [str(env.python), str(env.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", "8188"]
    command += ["--disable-api-nodes", "--preview-method", "latent2rgb", *cpu_flag(env)]
    if not env.ours and not has_pack(env.comfyui):
        extra = paths.HOME / "pack_paths.yaml"
        # JSON is valid YAML, and json.dumps quotes the path correctly.
        extra.write_text(json.dumps({"multirate_ras": {"custom_nodes": str(paths.BASE / "custom_nodes")}}))
        command += ["--extra-model-paths-config", str(extra)]
    return [*command, *arguments]


def serve(arguments: list[str]) -> int:
    """Start a ComfyUI that the user opens in a browser."""
    env = build()
    # A --port in ARGS takes precedence over 8188, because ComfyUI uses the last --port that it is given.
    if "--port" not in arguments and port_taken(8188):
        raise DevError(
            "`make serve` needs port 8188, which is in use, perhaps by another ComfyUI. "
            "Stop the other program, or choose a port: make serve ARGS='--port 8189'."
        )
    command = serve_command(env, arguments)
    say("dev: starting ComfyUI; open the address that it prints at the end, stop it with Ctrl-C")
    return replace_process(command, env.variables())


def demo(arguments: list[str]) -> int:
    """Run the demo with the dev environment's interpreter."""
    env = build()
    return replace_process([str(env.python), "-m", "dev.demo_run", *arguments], env.variables())


def bench_quality(arguments: list[str]) -> int:
    """Run the quality benchmark (`bench quality`); without arguments, its short sweep."""
    env = build()
    program = [str(env.python), "-m", "bench", "quality"]
    return replace_process([*program, *(arguments or ["sweep", "--preset", "quick"])], env.variables())


def clean(_arguments: list[str]) -> int:
    """Remove all files that the commands created, and models and images that users put into `.host/`."""
    for path in (paths.HOME, ROOT / "demo" / "output", ROOT / "tests" / "browser" / "output"):
        shutil.rmtree(path, ignore_errors=True)
    return 0


def show_build(_arguments: list[str], release: Release = RELEASE) -> int:
    """Build the dev environment, and print the paths of ComfyUI and the interpreter."""
    env = build(release)
    say(f"dev: ready: ComfyUI at {env.comfyui}, Python at {env.python}")
    return 0


def show_build_old(arguments: list[str]) -> int:
    """Build the dev environment with the older ComfyUI, and print the same paths."""
    return show_build(arguments, OLD_RELEASE)


def show_python(_arguments: list[str]) -> int:
    """Build the dev environment, and print only the interpreter's path, for use in shell scripts."""
    print(build().python)
    return 0


COMMANDS = {
    **{"build": show_build, "build-old": show_build_old, "python": show_python, "serve": serve},
    **{"demo": demo, "test": test, "test-old": test_old, "test-browser": test_browser, "lint": lint},
    **{"soak": soak, "bench-quality": bench_quality, "compatibility": compatibility, "clean": clean},
}

HELP = {name: inspect.getdoc(command) or "" for name, command in COMMANDS.items()}
"""What each command does."""

PASSED_TO = {
    "serve": "ComfyUI's main.py",
    "demo": "the demo (below)",
    **dict.fromkeys(("test", "test-old", "test-browser"), "pytest"),
    "lint": "both commands of ruff",
    "soak": "the soak; its options are in tests/soak/__main__.py",
    "bench-quality": "the benchmark (bench/README.md)",
}
"""What receives the arguments of a command; the other commands take none."""


def help_of(command: str) -> str:
    """The help of one command. It needs no dev environment, unlike the program that the command starts."""
    target = PASSED_TO.get(command)
    usage = f"usage: dev {command} [ARGUMENTS]" if target else f"usage: dev {command}"
    lines = [usage, "", HELP[command]]
    lines += ["", f"ARGUMENTS are passed to {target}."] if target else []
    lines += ["", command_line().format_help()] if command == "demo" else []
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the command's program")
    options = parser.parse_args(argv)
    if sys.version_info < (3, 10):  # noqa: UP036 (this is the check itself)
        version = sys.version.split()[0]
        say(f"dev: Python {version} is too old; 3.10 or newer is needed. Try make PYTHON=python3.11 <target>")
        return 1
    if {"-h", "--help"} & set(options.arguments):
        print(help_of(options.command))
        return 0
    try:
        return COMMANDS[options.command](options.arguments)
    except DevError as error:
        say(f"dev: {error}")
        return 1
    except KeyboardInterrupt:
        say("dev: stopped; run the command again to continue")
        return 130
