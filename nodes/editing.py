"""The node that prepares a picture of which a part is drawn anew."""

import logging

import comfy.utils
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.sampling.editing import scale_masks
from .host import sockets
from .host.attached import Patcher
from .host.edit import Edit
from .host.pairing import checked_pair
from .host.schema import CATEGORY, Node, StageEditType, VarModel, describe
from .host.vae import TokenizerVAE

_LOG = logging.getLogger(__name__)


class EditNode(Node):
    """IMAGE and MASK to what StageVAR Sampler keeps of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return describe(
            io.Schema,
            node_id="StageVAREdit",
            display_name="StageVAR Edit",
            category=CATEGORY,
            description="In-painting: prepares a picture of which StageVAR Sampler draws the masked part "
            "anew and keeps the rest. With Pad Image for Outpainting in front it extends a picture.",
            search_aliases=["inpaint", "outpaint", "edit", "mask"],
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
        schedule = pair.trained.snap(*image.shape[1:3])
        size = pair.trained.image_size(schedule)
        quantizer = pair.vae.quantizer(pair.network.config.patch)
        codes, _ = quantizer.encode(pair.vae.features(fitted(image, size)), schedule)
        kept = scale_masks(1.0 - fitted_mask(mask, image, size), schedule)
        grids = [quantizer.latent_grid(scale) for scale in schedule]
        masks = [
            F.interpolate(mask[:, None].float(), size=grid)[:, 0].bool()
            for mask, grid in zip(kept, grids, strict=True)
        ]
        if bool(masks[-1].all()):
            _LOG.warning("StageVAR: the mask selects nothing; the picture stays as it is")
        return io.NodeOutput(Edit(schedule, tuple(codes), tuple(masks), size, pair.vae.checkpoint.source))


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, H, W, C) in 0..1 scaled to ``size``, cut evenly where their shape differs."""
    height, width = size
    method = "area" if image.shape[1] > height else "bicubic"
    channels = image[..., :3].movedim(-1, 1)
    scaled = comfy.utils.common_upscale(channels, width, height, method, "center")
    return scaled.clamp(0.0, 1.0).movedim(1, -1)


def fitted_mask(mask: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) or (B, H, W) as (B, height, width), with the same cuts as its image."""
    whole = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if whole.shape[-2:] != image.shape[1:3]:  # Load Image gives a small one where there is no mask
        whole = F.interpolate(whole, size=tuple(image.shape[1:3]), mode="bilinear", align_corners=False)
    method = "area" if image.shape[1] > size[0] else "bilinear"
    return comfy.utils.common_upscale(whole, size[1], size[0], method, "center")[:, 0].clamp(0.0, 1.0)
