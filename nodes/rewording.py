"""The node that prepares a picture of which a word of its prompt changes."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.checks import inside
from ..stagevar_core.sampling.word_edit import STRENGTH, WordEdit
from .host import sockets
from .host.attached import Patcher
from .host.conditioning import HostConditioning, conditioning_of
from .host.edit import Edit
from .host.pairing import checked_pair
from .host.pictures import FITTED, fitted
from .host.schema import CATEGORY, Schema, StageEditType, VarModel, describe
from .host.vae import TokenizerVAE
from .host.values import CheckedNode, checked


class ChangeWords(CheckedNode):
    """IMAGE and the prompt that describes it to what StageVAR Sampler keeps of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARChangeWords",
            display_name="StageVAR Change Words (experimental)",
            category=CATEGORY,
            description="Prepares a picture that StageVAR Sampler changes as its prompt differs from the one "
            "here, and keeps where both prompts agree. Any Infinity model does this without training.",
            search_aliases=["edit", "prompt to prompt", "change word", "reword", "AREdit", "image to image"],
            is_experimental=True,
            inputs=_inputs(),
            outputs=[
                describe(
                    StageEditType.Output,
                    display_name="edit",
                    tooltip="For the edit input of StageVAR Sampler, whose positive prompt says what the "
                    "picture becomes.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: Patcher, vae: TokenizerVAE, image: Tensor, prompt: HostConditioning, **values: Any
    ) -> io.NodeOutput:
        """An :class:`Edit` of images (B, H, W, C) in 0..1 and the prompt that describes them.

        Raises ``ValueError`` naming the input for models that do not belong together or cannot do it.
        """
        wanted = checked(_inputs(), values)
        pair = checked_pair(model, vae)
        image, prompt = sockets.image("image", image), sockets.conditioning("prompt", prompt)
        if pair.network.family != "infinity" or pair.network.edits:
            what = "Infinity editing" if pair.network.edits else pair.network.family.upper()
            raise ValueError(
                f"model: found {what} weights; changing words needs a generating Infinity model. "
                "StageVAR Inpaint works with VAR and STAR"
            )
        try:
            conditioning_of(pair.network, prompt, None, len(image))
        except ValueError as error:
            raise ValueError(str(error).replace("positive", "prompt", 1)) from error
        with inside("image: its "):
            schedule = pair.trained.snap(*image.shape[1:3])
        size = pair.trained.image_size(schedule)
        features = pair.vae.features(fitted(image, size))
        words = WordEdit(features, wanted["strength"])
        edit = Edit(schedule, (), (), size, pair.vae.checkpoint.source, words=words, prompt=prompt)
        return io.NodeOutput(edit)


def _inputs() -> list[io.Input]:
    return [
        describe(VarModel.Input, "model", tooltip="The model of the sampler, an Infinity model."),
        describe(io.Vae.Input, "vae", tooltip="The tokenizer of the sampler; it encodes the picture."),
        describe(
            io.Image.Input,
            "image",
            tooltip=f"The picture. {FITTED}",
        ),
        describe(
            io.Conditioning.Input,
            "prompt",
            tooltip="What the picture shows, from CLIP Text Encode: the sampler's prompt with the old word.",
        ),
        describe(
            io.Float.Input,
            "strength",
            optional=True,
            default=STRENGTH,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip="How little the two prompts have to disagree for a token to be drawn anew: higher "
            "changes more of the picture.",
        ),
    ]
