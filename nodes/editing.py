"""The node that prepares a picture of which a part is drawn anew."""

import logging

from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.checks import inside
from ..stagevar_core.sampling.editing import scale_masks
from .host import sockets
from .host.attached import Patcher
from .host.edit import Edit
from .host.pairing import checked_pair
from .host.pictures import fitted, fitted_mask
from .host.schema import CATEGORY, Node, Schema, StageEditType, VarModel, describe
from .host.vae import TokenizerVAE

_LOG = logging.getLogger(__name__)


class EditNode(Node):
    """IMAGE and MASK to what StageVAR Sampler keeps of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVAREdit",
            display_name="StageVAR Inpaint",
            category=CATEGORY,
            description="In-painting: prepares a picture of which StageVAR Sampler draws the masked part "
            "anew and keeps the rest. With Pad Image for Outpainting in front it extends a picture.",
            search_aliases=["inpaint", "in-painting", "outpaint", "StageVAR Edit", "edit", "mask"],
            inputs=[
                describe(
                    VarModel.Input, "model", tooltip="The model of the sampler; it decides about the size."
                ),
                describe(
                    io.Vae.Input, "vae", tooltip="The tokenizer of the sampler; it encodes the picture."
                ),
                describe(
                    io.Image.Input,
                    "image",
                    tooltip="The picture. It is scaled to the nearest size the model was trained on; what "
                    "sticks out of its shape is cut off evenly.",
                ),
                describe(
                    io.Mask.Input,
                    "mask",
                    tooltip="What is drawn anew, as Load Image and the mask editor give it. A token is drawn "
                    "where the mask covers at least half of it.",
                ),
            ],
            outputs=[
                describe(
                    StageEditType.Output,
                    display_name="edit",
                    tooltip="For the edit input of StageVAR Sampler, which then makes this size.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Patcher, vae: TokenizerVAE, image: Tensor, mask: Tensor) -> io.NodeOutput:
        """An :class:`Edit` of images (B, H, W, C) in 0..1 and a mask, 1 where they are drawn anew.

        Raises ``ValueError`` naming the input for models that do not belong together.
        """
        pair = checked_pair(model, vae)
        image, mask = sockets.image("image", image), sockets.mask("mask", mask)
        with inside("image: its "):
            schedule = pair.trained.snap(*image.shape[1:3])
        size, patch = pair.trained.image_size(schedule), pair.network.config.patch
        codes = pair.vae.codes(fitted(image, size), schedule, patch)
        masks = scale_masks(1.0 - fitted_mask(mask, image, size), schedule, patch)
        notes = _notes(masks[-1])
        for note in notes:
            _LOG.warning("StageVAR: %s", note)
        edit = Edit(schedule, tuple(codes), tuple(masks), size, pair.vae.checkpoint.source, notes)
        return io.NodeOutput(edit)


def _notes(kept: Tensor) -> tuple[str, ...]:
    """That a mask selects nothing, from where the last scale stays (pictures or 1, h, w)."""
    empty = [str(number) for number, mask in enumerate(kept, 1) if bool(mask.all())]
    if not empty:
        return ()
    if len(empty) == len(kept):
        return ("the mask selects nothing; the picture stays as it is",)
    return (f"the mask selects nothing of picture {', '.join(empty)}, which stays as it is",)
