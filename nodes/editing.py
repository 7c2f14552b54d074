"""The node that prepares a picture of which a part is drawn anew."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.sampling.editing import scale_masks
from ..stagevar_core.schedule import ScaleSchedule
from .host.pairing import checked_pair
from .host.schema import CATEGORY, StageEditType, VarModel, describe

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edit:
    """The codes of pictures at every scale, and where they stay.

    ``codes``: per scale, on the latent grid, one row per picture. ``masks``: (pictures or 1, h, w) booleans.
    ``size``: (height, width) in pixels. ``tokenizer``: name of the file whose codes they are.
    """

    schedule: ScaleSchedule
    codes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    size: tuple[int, int]
    tokenizer: str

    def check(self, network: Any, vae: Any) -> None:
        """Raise ``ValueError`` when a sampler uses other models than the edit was made for."""
        trained = network.checkpoint.trained
        if self.tokenizer != vae.checkpoint.source or trained.snap(*self.size) != self.schedule:
            raise ValueError(
                f"edit: it was made with {self.tokenizer} for {self.size[1]}x{self.size[0]} and "
                f"{len(self.schedule)} scales, which are not those of this sampler's model and vae. Connect "
                "the same ones to StageVAR Edit"
            )

    def options(self, images: Sequence[int]) -> dict[str, list[Tensor]]:
        """What ``generate`` takes for these images of a batch, which use the pictures in turn."""

        def rows(part: Tensor) -> Tensor:
            return part[[index % len(part) for index in images]]

        return {"known": [rows(code) for code in self.codes], "masks": [rows(mask) for mask in self.masks]}


class EditNode(io.ComfyNode):
    """IMAGE and MASK to what StageVAR Sampler keeps of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
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
    def execute(cls, model: Any, vae: Any, image: Tensor, mask: Tensor) -> io.NodeOutput:
        network = checked_pair(model, vae)
        trained, patch = network.checkpoint.trained, network.config.patch
        schedule = trained.snap(*image.shape[1:3])
        size = trained.image_size(schedule)
        quantizer = vae.quantizer(patch)
        codes, _ = quantizer.encode(vae.features(fitted(image, size)), schedule)
        kept = scale_masks(1.0 - fitted_mask(mask, image, size), schedule)
        grids = [quantizer.latent_grid(scale) for scale in schedule]
        masks = [
            F.interpolate(mask[:, None].float(), size=grid)[:, 0].bool()
            for mask, grid in zip(kept, grids, strict=True)
        ]
        if bool(masks[-1].all()):
            _LOG.warning("StageVAR: the mask selects nothing; the picture stays as it is")
        return io.NodeOutput(Edit(schedule, tuple(codes), tuple(masks), size, vae.checkpoint.source))


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
