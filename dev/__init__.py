"""Development tools: a real ComfyUI with this pack, and commands that run in it. Not part of the published
pack.

Start with `python3 -m dev COMMAND` from the repository's root. Read in this order:

1. `commands` and `testing`: what each command runs.
2. `environment`: the dev environment in which the commands run. It has up to three parts:
   - `.host/venv` has PyTorch and the packages for ComfyUI, plus pytest and ruff (`venv`, `requirements`).
   - `.host/ComfyUI` is a current ComfyUI, with this pack in its `custom_nodes` (`tree`).
   - `.host/ComfyUI-0.3.75` is an older ComfyUI, also with this pack. It uses the packages of `.host/venv`.
   `build` creates `.host/venv` and the current ComfyUI; `build-old` creates `.host/venv` and the older one.
   Each part has a stamp file (`stamps`), which is written when the part is complete. If a part has no stamp
   (its build was interrupted) or if some of its files are missing, the next build repairs or rebuilds it.
3. `server` starts a ComfyUI process, `client` sends prompts to it, and `workflow` creates these prompts from
   saved workflows.
4. `demo_run`, `demo_options` and `report` are the demo. `browser` finds or installs what the browser tests
   need. `pack` lets programs outside ComfyUI import the pack. `processes` runs other programs; `paths` has
   the folders.
5. `help_pages` writes the help pages of the nodes, and `thumbnails` the thumbnails of templates for large
   models.

Needs Python 3.10 or newer and pip. The build does not change pip's configuration or environment variables.
To install PyTorch's smaller CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's package index for CPU builds.

If COMFYUI_PATH=/path/to/ComfyUI is set, the commands use that ComfyUI instead of `.host/ComfyUI`. Nothing is
installed or linked into that ComfyUI. If the pack is not installed there, `serve` passes an extra paths file
to ComfyUI, so that ComfyUI finds the pack. The demo and the tests start ComfyUI with a base directory of
their own, which contains the pack. `build-old` and `test-old` ignore COMFYUI_PATH.

If COMFYUI_PYTHON=/path/to/python is set, the commands use that interpreter instead of the `.host/venv` one.
The interpreter is checked but never changed. For a ComfyUI much newer than `.host/ComfyUI`, set both
variables, because such a ComfyUI needs other versions of the packages.
"""
