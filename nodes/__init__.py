"""The nodes of this pack: ComfyUI's face of ``stagevar_core``."""

from comfy_api.latest import ComfyExtension, io

from .acceleration import Accelerate
from .compiling import Compile, CompileVAE
from .continuing import Continue
from .edit_by_text import EditByText
from .editing import EditNode
from .labels import ClassLabel
from .load import Load
from .loaders import LoadModel, LoadTextEncoder, LoadTokenizer
from .lora import LoadLora
from .mask_preview import MaskPreview
from .paste_back import PasteBack
from .report import Report
from .restoring import Restore
from .rewording import ChangeWords
from .sampling import Sampler
from .scales import Scales
from .schedules import Schedule, register_folder
from .variety import PickDifferent
from .varying import Vary


class StageVARExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in the order of a workflow; the schedules' folder is known from then on."""
        register_folder()
        loaders = [Load, LoadModel, LoadTokenizer, LoadTextEncoder]
        compilers = [Compile, CompileVAE]
        makers = [EditNode, Vary, MaskPreview, ChangeWords, Sampler, Continue, PasteBack, EditByText, Restore]
        shown = [PickDifferent, Scales, Report]
        return [*loaders, LoadLora, ClassLabel, Accelerate, Schedule, *compilers, *makers, *shown]


async def comfy_entrypoint() -> StageVARExtension:
    """Called by ComfyUI at start-up."""
    return StageVARExtension()
