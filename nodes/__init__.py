"""The pack's nodes, for ComfyUI's V3 node API.

The module `settings` contains the inputs that the sampling nodes share. To add a setting, add a field to
`RASConfig` and an input of the same name to `settings`. Then add the texts of the input: its translations to
locales/, and its description to web/docs/.

`checks` refuses bad values of any input by the node's schema; a new type of input needs a line there.

To add a setting of the paper's method, add a field to `PaperSettings` and an input of the same name to
`paper_settings`.

To show more in the live view, add a field to `LiveStep` (ras_core/run/live.py). The module `live` sends the
fields to the browser. There web/live_view.js receives them, and live_panel.js, mask_overlay.js and
timeline.js draw them. A new sentence of a run (a reason, the line of a plan) needs its translations in
web/reasons.js. The module `hint` estimates a run before it starts; web/hint.js shows the estimate. The
module `model_source` identifies the model of a graph before it is loaded; with it, `hint` finds saved plans.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .compare import RASCompare
from .custom_sampler import RASSampler
from .demo import RASDemoModel, RASDemoPrompt
from .hint import register_hint
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
            RASCompare,
            RASCalibrate,
            RASTrace,
            RASMaskPreview,
            RASPaperSettings,
            RASSampler,
            RASScheduler,
            RASLuminaNextLoader,
            RASDemoModel,
            RASDemoPrompt,
        ]


async def comfy_entrypoint() -> MultirateRASExtension:
    register_route()
    register_hint()
    return MultirateRASExtension()
