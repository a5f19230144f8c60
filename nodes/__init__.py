"""The pack's nodes, in ComfyUI's V3 form; a module each.

`settings` has the inputs that the sampling nodes share. A new setting is a field of `RASConfig` and an input
of the same name there, with its texts in locales/ and web/docs/.

A setting of the paper's method is a field of `PaperSettings` and an input in `paper_settings`.

The live view: new data starts in ras_core/run/live.py (`LiveStep`). `live` sends it to web/live_view.js
(transport, setting); live_panel.js, mask_overlay.js and timeline.js draw it.
"""

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
from .plans import RASCalibrate, RASScheduler
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
            RASCalibrate,
            RASScheduler,
        ]


async def comfy_entrypoint() -> MultirateRASExtension:
    register_route()
    return MultirateRASExtension()
