"""The packages of the dev environment, and the modules that must be importable."""

from __future__ import annotations

TORCH = "torch==2.13.0"
PACKAGES = (
    TORCH,
    "torchaudio==2.11.0",  # torchaudio's last release; ComfyUI imports torchaudio on start
    "comfyui-frontend-package==1.47.12",  # this version works with both ComfyUI releases
    "comfy-aimdo==0.4.11",
    "comfy-kitchen==0.2.26",
    "aiohttp>=3.11.8",
    "alembic>=1.13",
    "av>=16",
    "blake3>=1",
    "einops>=0.7",
    "filelock>=3.13",
    "numpy>=1.25",
    "Pillow>=10",
    "psutil>=5.9",
    "pydantic~=2.0",
    "pydantic-settings~=2.0",
    "pyyaml>=6",
    "requests>=2.31",  # transformers 5 no longer depends on it
    "safetensors>=0.4.2",
    "scipy>=1.11",
    "sentencepiece>=0.2",
    "simpleeval>=1",
    "SQLAlchemy>=2",
    "tokenizers>=0.13.3",
    "torchsde>=0.2.6",
    "tqdm>=4.66",
    "transformers>=4.50.3",
    "yarl>=1.18",
    "pip",
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "ruff==0.17.6",
    "hypothesis==6.170.17",
)
TRITON = "triton>=3.3"  # the tests run kernels in its interpreter; PyTorch's GPU builds include it
TORCHVISION = "torchvision==0.28.0"  # matches TORCH
TORCHVISION_PLAIN = "torchvision==0.16.2"  # last version that imports without compiled ops
IMPORTS = (
    *("torch", "torchvision", "torchaudio", "torchsde", "transformers", "tokenizers", "sentencepiece"),
    *("numpy", "scipy", "PIL", "av", "safetensors", "einops", "comfy_kitchen", "comfy_aimdo.control"),
    *("aiohttp", "yarl", "yaml", "psutil", "tqdm", "requests", "blake3", "filelock", "simpleeval"),
    *("alembic", "sqlalchemy", "pydantic", "pydantic_settings", "comfyui_frontend_package"),
)
TOOLS = ("pytest", "ruff")
