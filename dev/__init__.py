"""Development tools: a real ComfyUI with this pack, and commands that run in it. Not part of the published
pack.

Start with `python3 -m dev COMMAND` from the repository's root. Read in this order:

1. `commands` and `testing`: what each command runs.
2. `environment`: the dev environment in which the commands run. It has up to three parts:
   `.host/venv`: PyTorch and the packages that ComfyUI needs, plus pytest and ruff (`venv`, `requirements`);
   `.host/ComfyUI`: a current ComfyUI, with this pack in its `custom_nodes` (`tree`);
   `.host/ComfyUI-0.3.75`: an older ComfyUI, also with this pack; it runs with the packages of `.host/venv`.
   `build` creates `.host/venv` and the current ComfyUI, `build-old` `.host/venv` and the older ComfyUI.
   Each part has a stamp file (`stamps`), which is written when the part is complete. A part without a stamp,
   because its build was interrupted, or with missing files is repaired or rebuilt by the next build.
3. `server` starts a ComfyUI process, `client` sends prompts to it, and `workflow` creates these prompts from
   saved workflows.
4. `demo_run` and `report` are the demo. `browser` finds or installs what the browser tests need. `pack` lets
   programs outside ComfyUI import the pack. `processes` runs other programs; `paths` has the folders.

Needs Python 3.10 or newer and pip. The build does not change pip's configuration or environment variables.
To install PyTorch's smaller CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's package index for CPU builds.

If COMFYUI_PATH=/path/to/ComfyUI is set, the commands use that ComfyUI instead of `.host/ComfyUI`. Nothing is
installed or linked into it. `serve` makes it load the pack with an extra paths file, unless the pack is
already installed there; the demo and the tests use their own base directory, which contains the pack.
`build-old` and `test-old` ignore COMFYUI_PATH.

If COMFYUI_PYTHON=/path/to/python is set, the commands use that interpreter instead of the `.host/venv` one.
The interpreter is checked but never changed. For a ComfyUI much newer than `.host/ComfyUI`, set both
variables, because such a ComfyUI needs other versions of the packages.
"""
