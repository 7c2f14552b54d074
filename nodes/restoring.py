"""The node that makes a small or damaged picture large and clean."""

import logging

from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.acceleration.presets import OFF
from ..stagevar_core.autoencoders.tiles import MAX_OVERLAP, MAX_SCALE, restored_size
from ..stagevar_core.checks import whole
from ..stagevar_core.conditioning.types import TextConditioning
from .host import sockets
from .host.attached import Patcher, policy_of
from .host.conditioning import HostConditioning, conditioning_of
from .host.pairing import checked_pair
from .host.restoring import RestoreJob, UpscaleModel, restored
from .host.schema import CATEGORY, Node, Schema, VarModel, describe
from .host.vae import TokenizerVAE

_LOG = logging.getLogger(__name__)
_MAX_SEED = 0xFFFFFFFFFFFFFFFF


class Restore(Node):
    """IMAGE to IMAGE with a restoring VAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARRestore",
            display_name="StageVAR Restore",
            category=CATEGORY,
            description="Makes a small or damaged picture larger and clean with VARestorer, in one pass of "
            "the transformer per tile. Pictures of any size; large ones go through it in overlapping tiles.",
            search_aliases=["upscale", "super resolution", "VARestorer", "enlarge", "restore"],
            inputs=_inputs(),
            outputs=[
                describe(io.Image.Output, display_name="image", tooltip="The pictures, scale times as large.")
            ],
        )

    @classmethod
    def execute(  # noqa: PLR0913 (the host passes inputs by name)
        cls,
        model: Patcher,
        vae: TokenizerVAE,
        image: Tensor,
        seed: int = 0,
        scale: float = 4.0,
        overlap: int = 128,
        positive: HostConditioning | None = None,
        upscale_model: UpscaleModel | None = None,
    ) -> io.NodeOutput:
        """Pictures (B, H, W, C) in 0..1, ``scale`` times as large.

        Raises ``ValueError`` naming the input that cannot be used, and ``RuntimeError`` where a tile does not
        fit into memory.
        """
        pair = checked_pair(model, vae, restores=True)
        pictures = sockets.image("image", image)
        size = restored_size(tuple(pictures.shape[1:3]), scale)
        conditioning, notes = None, []
        if positive is not None:
            given = sockets.conditioning("positive", positive)
            conditioning, left_out = conditioning_of(pair.network, given, None, 1)
            notes += left_out
            assert isinstance(conditioning, TextConditioning), "restoring models take texts"
        job = RestoreJob(
            pair,
            conditioning,
            whole("seed", seed, 0, _MAX_SEED),
            size,
            whole("overlap", overlap, 0, MAX_OVERLAP),
            None if upscale_model is None else _checked_network(upscale_model),
        )
        if policy_of(model.model_options) is not OFF:
            notes.append("One pass has no scales to spare: the acceleration on the model does nothing.")
        for note in notes:
            _LOG.warning("StageVAR: %s", note)
        made = restored(job, pictures)
        said = f"{size[1]} x {size[0]}, {job.tiles} tile{'' if job.tiles == 1 else 's'}"
        return io.NodeOutput(made, ui={"text": [said, *notes]})


def _inputs() -> list[io.Input]:
    return [
        describe(
            VarModel.Input, "model", tooltip="A model that restores, from Load StageVAR Model: VARestorer."
        ),
        describe(
            io.Vae.Input, "vae", tooltip="Its tokenizer, from Load StageVAR Tokenizer (VAE): that of the 2B."
        ),
        describe(io.Image.Input, "image", tooltip="The pictures, of any size. Alpha is scaled along."),
        describe(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=_MAX_SEED,
            control_after_generate=True,
            optional=True,
            tooltip="Details are drawn: the same seed gives the same picture; picture n of a batch is the "
            "one of seed + n.",
        ),
        describe(
            io.Float.Input,
            "scale",
            default=4.0,
            min=1.0,
            max=MAX_SCALE,
            step=0.5,
            round=0.01,
            optional=True,
            tooltip="How many times larger. The model was trained for 4; 1 cleans a picture at its own size.",
        ),
        describe(
            io.Int.Input,
            "overlap",
            default=128,
            min=0,
            max=MAX_OVERLAP,
            step=16,
            optional=True,
            advanced=True,
            tooltip="Pixels that neighbouring tiles share, at most half a tile; across them they blend into "
            "each other.",
        ),
        describe(
            io.Conditioning.Input,
            "positive",
            optional=True,
            tooltip="What the picture shows, from CLIP Text Encode; one text for all tiles. Without it the "
            "model's null text is used, and no text encoder is needed.",
        ),
        describe(
            io.UpscaleModel.Input,
            "upscale_model",
            optional=True,
            tooltip="A network that the picture goes through first, from Load Upscale Model: the SwinIR of "
            "DiffBIR with which VARestorer was published, or any other. Without it the picture is enlarged "
            "with Lanczos' filter alone.",
        ),
    ]


def _checked_network(network: object) -> UpscaleModel:
    """An UPSCALE_MODEL of colour pictures."""
    scale = getattr(network, "scale", None)
    channels = [getattr(network, f"{side}put_channels", None) for side in ("in", "out")]
    if not isinstance(scale, int) or channels != [3, 3]:
        found = (
            type(network).__name__ if scale is None else f"one with {channels[0]} to {channels[1]} channels"
        )
        raise ValueError(
            f"upscale_model: found {found}; expected an UPSCALE_MODEL of colour pictures; connect Load "
            "Upscale Model"
        )
    return network  # pyright: ignore[reportReturnType]
