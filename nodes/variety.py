"""The node that picks the pictures of a batch that look least alike."""

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.sampling.variety import most_different
from .host import sockets
from .host.schema import CATEGORY, Schema, describe
from .host.values import CheckedNode, checked

_SHOWN = 32  # numbers on the node, which is small


class PickDifferent(CheckedNode):
    """IMAGE and the LATENT behind it to those few of both that differ most."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARPickDifferent",
            display_name="StageVAR Pick Different (most varied of a batch)",
            category=CATEGORY,
            description="Picks the pictures of a batch that look least alike, and their latents. Make many, "
            "drafts for example, and go on with a few that are worth the choice.",
            search_aliases=["variety", "diversity", "drafts", "latent from batch", "select", "TTS-VAR"],
            inputs=_inputs(),
            outputs=[
                describe(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="The latents of the picked pictures, in the order of the batch.",
                ),
                describe(
                    io.Image.Output,
                    display_name="images",
                    tooltip="The picked pictures, in the order of the batch.",
                ),
            ],
        )

    @classmethod
    def execute(cls, latent: Mapping[str, Any], images: Tensor, **values: Any) -> io.NodeOutput:
        """The latent and the pictures (count, H, W, C) that were picked, and on the node which.

        Raises ``ValueError`` where the batches differ in size.
        """
        wanted = checked(_inputs(), values)["count"]
        latent, images = sockets.latent("latent", latent), sockets.image("images", images)
        count = latent["samples"].shape[0] if latent["samples"].dim() else 0
        if count != len(images):
            raise ValueError(
                f"latent: found a batch of {count} beside {len(images)} images; expected one for each image; "
                "connect the latent that the images were decoded from"
            )
        picked = most_different(images[..., :3], wanted)
        return io.NodeOutput(_of_batch(latent, picked), images[picked], ui={"text": [_said(picked, count)]})


def _of_batch(latent: Mapping[str, Any], picked: list[int]) -> dict[str, Any]:
    """These of a batch as core's Latent From Batch leaves them: further keys stay as they are."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    places = latent.get("batch_index")
    if not isinstance(places, list) or len(places) != len(samples):
        places = range(len(samples))
    kept = {**latent, "samples": samples[picked], "batch_index": [places[index] for index in picked]}
    if isinstance(mask, Tensor) and len(mask) > 1:
        kept["noise_mask"] = mask[[index % len(mask) for index in picked]]
    return kept


def _said(picked: list[int], count: int) -> str:
    """Which ones, in the numbers that core's Latent From Batch takes."""
    numbers = ", ".join(map(str, picked[:_SHOWN]))
    more = f" and {len(picked) - _SHOWN} more" if len(picked) > _SHOWN else ""
    return f"{len(picked)} of {count}: {numbers}{more} (0 is the first, as in Latent From Batch)"


def _inputs() -> list[io.Input]:
    return [
        describe(io.Latent.Input, "latent", tooltip="The batch to pick from, of StageVAR Sampler."),
        describe(
            io.Image.Input,
            "images",
            tooltip="The same batch as pictures, from VAE Decode. They are compared as thumbnails: layout "
            "and colours count, texture does not.",
        ),
        describe(
            io.Int.Input,
            "count",
            optional=True,
            default=4,
            min=1,
            max=1024,
            tooltip="How many to pick; all where the batch is smaller. The first of the batch is always one "
            "of them.",
        ),
    ]
