"""The node that shows which tokens a mask draws anew."""

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.checks import inside
from ..stagevar_core.sampling.editing import scale_masks
from ..stagevar_core.schedule import ScaleSchedule
from .host import sockets
from .host.attached import Patcher
from .host.pairing import checked_model, trained_of
from .host.pictures import fitted_mask, placed, repeated
from .host.schema import CATEGORY, Node, Schema, VarModel, describe

_TINT, _SHARE = (1.0, 0.0, 0.8), 0.55  # of what is drawn anew
_EARLY = 0.25  # tokens of the scale between, as a share of the last one's


class MaskPreview(Node):
    """VAR_MODEL, IMAGE and MASK to the MASK and the IMAGE of the tokens that are drawn anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARMaskPreview",
            display_name="StageVAR Mask Preview",
            category=CATEGORY,
            description="Shows what a mask becomes on the grid of tokens: which of them in-painting draws "
            "anew. Nothing is drawn or encoded for it.",
            search_aliases=["mask", "token grid", "inpaint preview", "in-painting", "tokens", "preview"],
            inputs=[
                describe(
                    VarModel.Input,
                    "model",
                    tooltip="The model of the sampler; it decides about size and tokens.",
                ),
                describe(
                    io.Image.Input,
                    "image",
                    tooltip="The picture that goes to VAE Encode or StageVAR Inpaint.",
                ),
                describe(
                    io.Mask.Input,
                    "mask",
                    tooltip="The mask that goes to Set Latent Noise Mask or StageVAR Inpaint.",
                ),
            ],
            outputs=[
                describe(
                    io.Mask.Output,
                    display_name="mask",
                    tooltip="The tokens that the last scale draws anew, at the picture's size. The mask for "
                    "StageVAR Paste Back.",
                ),
                describe(
                    io.Image.Output,
                    display_name="tokens",
                    tooltip="The same laid over the picture in pink, then the same for an earlier scale, "
                    "which has a quarter of the tokens. For Preview Image.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Patcher, image: Tensor, mask: Tensor) -> io.NodeOutput:
        """Masks (rows, H, W), 1 on tokens that are drawn, and pictures (2 x rows, H, W, 3) in 0..1.

        Raises ``ValueError`` naming the input that cannot be used.
        """
        patcher = checked_model(model)
        trained = trained_of(patcher)
        image, mask = sockets.image("image", image), sockets.mask("mask", mask)
        with inside("image: its "):
            schedule = trained.snap(*image.shape[1:3])
        size = trained.image_size(schedule)
        kept = scale_masks(1.0 - fitted_mask(mask, image.shape[1:3], size), schedule)
        count = max(len(image), len(kept[-1]))
        pictures = repeated(image[..., :3], count)
        last, early = (_drawn(kept[index], size, pictures) for index in (-1, _early(schedule)))
        return io.NodeOutput(last, torch.cat([_tinted(pictures, part) for part in (last, early)]))


def _early(schedule: ScaleSchedule) -> int:
    """The scale whose number of tokens is nearest to a quarter of the last one's."""
    return min(range(len(schedule)), key=lambda index: abs(schedule.area_fraction(schedule[index]) - _EARLY))


def _drawn(kept: Tensor, size: tuple[int, int], pictures: Tensor) -> Tensor:
    """Tokens that are drawn, from those that stay (rows, h, w), as masks (B, H, W) of pictures."""
    tokens = F.interpolate(1.0 - kept.float()[:, None], size=size, mode="nearest-exact").movedim(1, -1)
    nothing = torch.zeros_like(pictures[..., :1])
    return placed(repeated(tokens, len(pictures)), nothing, smooth=False)[..., 0]


def _tinted(pictures: Tensor, drawn: Tensor) -> Tensor:
    tint = torch.tensor(_TINT, dtype=pictures.dtype, device=pictures.device)
    return torch.lerp(pictures, tint.expand_as(pictures), drawn[..., None].to(pictures) * _SHARE)
