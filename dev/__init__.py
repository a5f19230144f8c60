"""Development tools: a real ComfyUI with this pack in it, and the commands that run in it. None of it ships.

Start with `python3 -m dev COMMAND` from the repository's root. Read in this order:

1. `commands` and `testing`: what each command runs.
2. `environment`: the dev environment that they run in. `build` makes the first two of these parts,
   `build-old` the first and the third:
   `.host/venv`: PyTorch and the packages that ComfyUI needs, plus pytest and ruff (`venv`, `requirements`);
   `.host/ComfyUI`: the ComfyUI that users run today, with this pack in its `custom_nodes` (`tree`);
   `.host/ComfyUI-0.3.75`: an older one, likewise; it shares the packages.
   Each part has its own stamp (`stamps`), written last: an interrupted build has none and is started again,
   and a part that has lost a file is rebuilt.
3. `server` and `client`: a ComfyUI process, and prompts for it, made from saved workflows by `workflow`.
4. `demo_run` and `report`: the demo. `browser`: what the tests in a browser need.
   `pack`: how programs outside ComfyUI import the pack. `processes`, `paths`: running programs, folders.

Needs Python 3.10 or newer and pip. What pip installs from is pip's own business: its configuration and
environment are used as they are. PyTorch's CPU index in PIP_EXTRA_INDEX_URL gives its small build.

COMFYUI_PATH=/path/to/ComfyUI uses that tree instead, and nothing is ever installed or linked into it:
`serve` hands it the pack by an extra paths file (unless the pack is installed there already), the demo and
the tests by a base directory of their own (`build-old` and `test-old` still use the older one built here).
COMFYUI_PYTHON=/path/to/python uses that interpreter instead of `.host/venv`; it is checked, never changed. A
ComfyUI much newer than the one built here needs its own packages: set both.
"""
