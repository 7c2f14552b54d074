"""The node that changes a picture as a text says."""

from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.checkpoints.tasks import side_of
from ..stagevar_core.conditioning.picture import from_square, to_square
from ..stagevar_core.conditioning.types import Conditioning, TextConditioning
from .host import sockets
from .host.attached import Patcher, kept_of, policy_of
from .host.conditioning import HostConditioning, conditioning_of
from .host.drawing import draw, drawing_inputs, report_output, settings_of
from .host.pairing import Pair, checked_pair
from .host.pictures import to_bytes
from .host.running import Job
from .host.schema import CATEGORY, Schema, VarModel, describe
from .host.vae import TokenizerVAE
from .host.values import CheckedNode, checked

_MAX_SIDE = 16384  # of a picture; its square takes this times this times three bytes
_MAX_TRIES = 64


class EditByText(CheckedNode):
    """IMAGE and CONDITIONING to IMAGE with an editing VAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVAREditByText",
            has_intermediate_output=True,  # its line comes back with a cached rerun, where ComfyUI knows how
            display_name="StageVAR Edit by Text (VAREdit)",
            category=CATEGORY,
            description="Changes a picture as a text says: make it snow, turn the cup into glass. It needs a "
            "model that edits: VAREdit, or the built-in editor. The picture keeps its size and shape.",
            search_aliases=[
                *("VAREdit", "edit", "instruction", "edit by text", "image to image", "img2img"),
                *("instruct", "kontext", "change"),
            ],
            inputs=_inputs(),
            outputs=[
                describe(
                    io.Image.Output,
                    display_name="image",
                    tooltip="The edited pictures, in the size of those that came in.",
                ),
                describe(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="The same as codes, of the square that the model sees.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        vae: TokenizerVAE,
        image: Tensor,
        positive: HostConditioning,
        negative: HostConditioning | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """Pictures (B x tries, H, W, 3) in 0..1, their latents, the report, and on the node what it did.

        Raises ``ValueError`` naming the input that cannot be used, before the first scale, and
        ``RuntimeError`` where one image alone does not fit into memory.
        """
        wanted = checked(_inputs(), values)
        pair = checked_pair(model, vae, edits=True)
        pictures, notes = _pictures(image)
        sockets.texts(positive, negative)
        network, tries, side = pair.network, wanted["tries"], side_of(pair.trained)
        schedule = pair.trained.snap(side, side)
        settings = settings_of(network, wanted).on(schedule)
        settings.validate(len(schedule), network.config.depth)
        asked, left_out = conditioning_of(network, positive, negative, len(pictures))
        if asked.tokens <= 1:
            notes.append("the instruction is empty: nothing says what to change")
        conditioning = _pictured(pair, asked, pictures, side, tries)
        policy, kept = policy_of(pair.model.model_options), kept_of(pair.model)
        job = Job(pair.model, pair.vae, conditioning, schedule, settings, wanted["seed"], policy, kept=kept)
        height, width = size = (pictures.shape[1], pictures.shape[2])
        count = f"{conditioning.batch} edits of " if conditioning.batch > 1 else ""
        drawn = draw(job, (side, side), f"{count}{width} x {height} at {side} px", (*left_out, *notes))
        edited = _in_size(pair.vae.decode(drawn.latent["samples"]), size)
        return io.NodeOutput(edited, drawn.latent, drawn.report, ui={"text": drawn.lines})


def _inputs() -> list[io.Input]:
    return [
        describe(
            VarModel.Input,
            "model",
            tooltip="A model that edits: VAREdit or the built-in editor, from StageVAR Load or Load StageVAR "
            "Model. StageVAR Accelerate works on it.",
        ),
        describe(io.Vae.Input, "vae", tooltip="Its tokenizer: that of the Infinity of its size."),
        describe(
            io.Image.Input,
            "image",
            tooltip="The pictures, of any size. They are put into a white square, edited at the model's size "
            "and brought back to their own. Transparency is dropped.",
        ),
        describe(
            io.Conditioning.Input,
            "positive",
            tooltip="What to change, from CLIP Text Encode: make it snow. For several pictures and texts, in "
            "turn.",
        ),
        describe(
            io.Conditioning.Input,
            "negative",
            optional=True,
            tooltip="What the result should not be. Without it the model's own null text is used, as it was "
            "published.",
        ),
        *drawing_inputs(),
        describe(
            io.Int.Input,
            "tries",
            optional=True,
            default=1,
            min=1,
            max=_MAX_TRIES,
            tooltip="Edits of every picture, each with a seed of its own.",
        ),
    ]


def _pictures(image: object) -> tuple[Tensor, list[str]]:
    """Pictures (B, H, W, C) that can be edited, and what of them is left out."""
    pictures = sockets.image("image", image)
    height, width = pictures.shape[1:3]
    if max(height, width) > _MAX_SIDE:
        raise ValueError(
            f"image: found {width} x {height} pixels; expected sides up to {_MAX_SIDE}; scale it down, "
            "the model sees far fewer"
        )
    return pictures, ["the picture's transparency is dropped"] if pictures.shape[3] > 3 else []


def _pictured(pair: Pair, asked: Conditioning, pictures: Tensor, side: int, tries: int) -> TextConditioning:
    """The texts of every picture with its features, as often as it is tried."""
    assert isinstance(asked, TextConditioning), "editing models take texts"
    squares = [to_square(to_bytes(picture[..., :3]), side) for picture in pictures]
    features = torch.cat([pair.vae.features(torch.tensor(square)[None] / 255.0) for square in squares])

    def each(texts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(text for text in texts for _ in range(tries))

    return replace(
        asked,
        features=each(asked.features),
        negative=None if asked.negative is None else each(asked.negative),
        source=features.repeat_interleave(tries, dim=0),
    )


def _in_size(squares: Tensor, size: tuple[int, int]) -> Tensor:
    """Decoded squares (B, side, side, 3) in 0..1 as pictures of ``size`` (height, width)."""
    out = torch.empty(len(squares), *size, 3)
    for index, square in enumerate(squares):
        # Cut to bytes, not rounded, as the published code does.
        bytes_ = square[..., :3].mul(255.0).to(torch.uint8).cpu().numpy()
        out[index] = torch.tensor(from_square(bytes_, size)) / 255.0
    return out.to(mm.intermediate_device())
