"""The nodes of this pack: ComfyUI's face of ``stagevar_core``."""

from comfy_api.latest import ComfyExtension, io

from .loaders import LoadModel, LoadTextEncoder, LoadTokenizer
from .sampling import Sampler


class StageVARExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, LoadTokenizer, LoadTextEncoder, Sampler]


async def comfy_entrypoint() -> StageVARExtension:
    """Called by ComfyUI at start-up."""
    return StageVARExtension()
