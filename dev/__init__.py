"""Development tools: a real ComfyUI with this pack, and commands that run in it. Not part of the published
pack.

Start with `python3 -m dev COMMAND` from the repository's root. Read in this order:

1. `commands` and `testing`: what each command runs.
2. `environment`: the dev environment in which they run. `build` creates the first two of these parts,
   `build-old` the first and the third:
   `.host/venv`: PyTorch and the packages that ComfyUI needs, plus pytest and ruff (`venv`, `requirements`);
   `.host/ComfyUI`: a current ComfyUI, with this pack in its `custom_nodes` (`tree`);
   `.host/ComfyUI-0.3.75`: an older ComfyUI, also with the pack; it uses the same packages.
   Each part has a stamp (`stamps`), which is written last: an interrupted build has none and is started
   again, and a part with missing files is rebuilt.
3. `server` and `client`: a ComfyUI process, and prompts for it, which `workflow` creates from saved
workflows. 4. `demo_run` and `report`: the demo. `browser`: requirements of the browser tests.
   `pack`: how programs outside ComfyUI import the pack. `processes`, `paths`: running programs, folders.

Needs Python 3.10 or newer and pip. pip's configuration and environment variables are not changed. Set
PIP_EXTRA_INDEX_URL to PyTorch's CPU index to install its small build.

COMFYUI_PATH=/path/to/ComfyUI uses that tree instead. Nothing is ever installed or linked into it: `serve`
adds the pack with an extra paths file (unless it is already installed there), the demo and the tests with
their own base directory. (`build-old` and `test-old` still use the older ComfyUI built here.)
COMFYUI_PYTHON=/path/to/python uses that interpreter instead of `.host/venv`; it is checked but never changed.
A much newer ComfyUI than the one built here needs its own packages: then set both.
"""
