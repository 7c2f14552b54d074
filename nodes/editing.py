"""The node that prepares a picture of which a part is drawn anew."""

import logging

from comfy_api.latest import io
from torch import Tensor

from .host import sockets
from .host.attached import Patcher
from .host.edit import edit_output
from .host.inpainting import image_edit
from .host.pairing import checked_pair
from .host.pictures import FITTED
from .host.schema import CATEGORY, Node, Schema, VarModel, describe
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
                    tooltip=f"The picture. {FITTED}",
                ),
                describe(
                    io.Mask.Input,
                    "mask",
                    tooltip="What is drawn anew, as Load Image and the mask editor give it. A token is drawn "
                    "where the mask covers at least half of it.",
                ),
            ],
            outputs=[edit_output()],
        )

    @classmethod
    def execute(cls, model: Patcher, vae: TokenizerVAE, image: Tensor, mask: Tensor) -> io.NodeOutput:
        """The edit of images (B, H, W, C) in 0..1 and a mask, 1 where they are drawn anew.

        Raises ``ValueError`` naming the input for models that do not belong together.
        """
        pair = checked_pair(model, vae)
        edit = image_edit(pair, sockets.image("image", image), sockets.mask("mask", mask))
        for note in edit.notes:
            _LOG.warning("StageVAR: %s", note)
        return io.NodeOutput(edit)
