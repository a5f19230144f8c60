"""The pack's nodes, in ComfyUI's V3 form."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .compare import RASCompare
from .custom_sampler import RASSampler
from .demo import RASDemoModel, RASDemoPrompt
from .live import register_route
from .lumina_next import RASLuminaNextLoader
from .mask_preview import RASMaskPreview
from .paper_settings import RASPaperSettings
from .patch_model import RASPatchModel
from .sampler import RASKSampler
from .trace import RASTrace


class MultirateRASExtension(ComfyExtension):
    """The extension that ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            RASPatchModel,
            RASKSampler,
            RASPaperSettings,
            RASSampler,
            RASTrace,
            RASMaskPreview,
            RASCompare,
            RASDemoModel,
            RASDemoPrompt,
            RASLuminaNextLoader,
        ]


async def comfy_entrypoint() -> MultirateRASExtension:
    register_route()
    return MultirateRASExtension()
