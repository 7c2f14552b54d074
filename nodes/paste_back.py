"""The node that puts what was drawn anew into the picture as it was."""

from typing import Any

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from .host import sockets
from .host.pictures import mask_of, placed, repeated
from .host.schema import CATEGORY, Schema, describe
from .host.values import CheckedNode, checked

_MOST = 512  # pixels


class PasteBack(CheckedNode):
    """Two IMAGEs and a MASK to an IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARPasteBack",
            display_name="StageVAR Paste Back",
            category=CATEGORY,
            description="Puts the part that was drawn anew into the original picture, at its full size and "
            "with a soft seam. Everything else keeps the original's pixels.",
            search_aliases=[
                *("composite", "paste back", "stitch", "feather", "blend", "inpaint"),
                *("outpaint", "seam", "ImageCompositeMasked"),
            ],
            inputs=_inputs(),
            outputs=[
                describe(
                    io.Image.Output,
                    display_name="image",
                    tooltip="The pictures, in the size of the original.",
                )
            ],
        )

    @classmethod
    def execute(cls, original: Tensor, drawn: Tensor, mask: Tensor, **values: Any) -> io.NodeOutput:
        """Pictures (B, H, W, 3) in 0..1; the shorter of the two batches, and the mask, repeat.

        Raises ``ValueError`` naming the input that cannot be used.
        """
        feather = checked(_inputs(), values)["feather"]
        before, after = sockets.image("original", original), sockets.image("drawn", drawn)
        soft = _feathered(mask_of(sockets.mask("mask", mask), before.shape[1:3]), feather)
        count, device = max(len(before), len(after)), mm.intermediate_device()
        before, after = (repeated(part[..., :3], count).to(device).float() for part in (before, after))
        weight = repeated(soft, count).to(device)[..., None]
        whole = placed(after, before)
        pasted = torch.where(weight > 0, before + (whole - before) * weight, before)
        return io.NodeOutput(torch.where(weight < 1, pasted, whole))


def _inputs() -> list[io.Input]:
    return [
        describe(io.Image.Input, "original", tooltip="The picture as it was, of any size."),
        describe(
            io.Image.Input,
            "drawn",
            tooltip="The picture from VAE Decode. Where the sampler made another size or shape of it, it is "
            "brought back to its place in the original.",
        ),
        describe(
            io.Mask.Input,
            "mask",
            tooltip="What was drawn anew: best the mask of StageVAR Mask Preview, which follows the tokens.",
        ),
        describe(
            io.Int.Input,
            "feather",
            optional=True,
            default=8,
            min=0,
            max=_MOST,
            tooltip="Width of the seam in pixels of the original, outside of the mask. There the two "
            "pictures show the same and differ little. 0 is a hard edge.",
        ),
    ]


def _feathered(mask: Tensor, feather: int) -> Tensor:
    """The share of what was drawn: 1 on the mask (rows, H, W), 0 from ``feather`` pixels beside."""
    mask = mask.clamp(0.0, 1.0)
    if not feather:
        return mask
    rows = []
    for row in mask.cpu():
        inside = row.numpy() >= 0.5
        if not inside.any():
            rows.append(row)
            continue
        away = np.asarray(distance_transform_edt(~inside)) / (feather + 1)
        ramp = 0.5 + 0.5 * np.cos(np.pi * np.minimum(away, 1.0))
        rows.append(torch.maximum(row, torch.from_numpy(ramp.astype(np.float32))))
    return torch.stack(rows)
