# Set up a GPU machine without network access. Source this file; it sets COMFYUI_PATH and PYTHONPATH.
#
#     . bench/bare_machine.sh FOLDER [TARGET]      (TARGET: bare/ in the folder for temporary files by default)
#
# FOLDER holds wheels/*.whl (packages that ComfyUI imports and the machine's Python lacks) and comfyui-*.tar.gz
# (with a folder ComfyUI/). Expected on the machine: Python with pip, a CUDA build of torch, torchvision, torchaudio,
# transformers, aiohttp and the like. Nothing is installed into that Python. A second call only does what is still
# missing.

bare_machine() {
    local carried=${1:?a folder with wheels and ComfyUI} target=${2:-${TMPDIR:-/tmp}/bare} python=${PYTHON:-python3}
    mkdir -p "$target/site" || return
    if [ ! -e "$target/installed" ]; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
            --root-user-action ignore --upgrade --target "$target/site" "$carried"/wheels/*.whl || return
        tar -xzf "$(ls "$carried"/comfyui-*.tar.gz | sort -V | tail -n 1)" -C "$target" || return
        bare_stub_av "$python" "$target/site" || return
        touch "$target/installed"
    fi
    export COMFYUI_PATH=$target/ComfyUI
    case ":$PYTHONPATH:" in *":$target/site:"*) ;; *) export PYTHONPATH=$target/site${PYTHONPATH:+:$PYTHONPATH} ;; esac
}

# comfy_api imports `av` (video) and uses its classes in annotations; nothing here opens a video.
bare_stub_av() {
    "$1" -c 'import av' 2>/dev/null && return
    mkdir -p "$2/av" && cat >"$2/av/__init__.py" <<'PYTHON'
"""Stands in for PyAV where videos are neither read nor written."""

import importlib.abc
import importlib.machinery
import sys
import types


class _Meta(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub


class Stub(metaclass=_Meta):
    """Any class, function or constant of PyAV."""

    def __new__(cls, *args, **kwargs):
        return Stub


class _Module(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("av.") else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Stub
PYTHON
}

bare_machine "$@"
