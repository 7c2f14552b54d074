"""The node that prepares a picture of which the first scales stay and the others are drawn anew."""

import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.acceleration.stages import kept_scales
from ..stagevar_core.checks import inside
from ..stagevar_core.sampling.result import ScaleCodes
from ..stagevar_core.sampling.settings import SamplingSettings
from ..stagevar_core.sampling.state import RunState
from ..stagevar_core.schedule import ScaleSchedule
from .host import sockets
from .host.attached import Patcher
from .host.carried import carried
from .host.edit import Edit, edit_output
from .host.pairing import Pair, checked_pair
from .host.pictures import FITTED, fitted
from .host.schema import CATEGORY, Schema, VarModel, describe
from .host.vae import TokenizerVAE
from .host.values import CheckedNode, checked

_LOG = logging.getLogger(__name__)
_VARIATION = 0.5  # keeps the structure stage


class Vary(CheckedNode):
    """IMAGE or LATENT to what StageVAR Sampler keeps of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARVary",
            has_intermediate_output=True,  # its line comes back with a cached rerun, where ComfyUI knows how
            display_name="StageVAR Vary (variations, image to image)",
            category=CATEGORY,
            description="Variations of a picture: StageVAR Sampler keeps its first scales, which hold the "
            "composition, and draws the others anew. With another prompt this is image to image.",
            search_aliases=[
                "vary",
                "variation",
                "variations",
                "img2img",
                "image to image",
                "denoise",
                "remix",
            ],
            inputs=_inputs(),
            outputs=[edit_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        vae: TokenizerVAE,
        image: Tensor | None = None,
        latent: dict[str, Any] | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """An :class:`Edit` of images (B, H, W, C) in 0..1 or of a latent, and on the node what stays of them.

        Raises ``ValueError`` naming the input that cannot be used.
        """
        variation = checked(_inputs(), values)["variation"]
        if (image is None) == (latent is None):
            found = "neither is connected" if image is None else "both are connected"
            raise ValueError(
                f"image, latent: {found}; expected one picture to vary; connect an image, or the latent of "
                "StageVAR Sampler"
            )
        pair = checked_pair(model, vae)
        if latent is None:
            state, notes = _pictured(pair, sockets.image("image", image))
        else:
            state, notes = _drawn(pair, sockets.latent("latent", latent)["samples"])
        schedule, count = state.schedule, kept_scales(state.schedule, variation)
        if count > state.scales:
            notes.append(f"the run stopped after {state.scales} of {len(schedule)} scales; all of them stay")
        first = state.first(min(count, state.scales))
        for note in notes:
            _LOG.warning("StageVAR: %s", note)
        size, source = pair.trained.image_size(schedule), pair.vae.checkpoint.source
        edit = Edit(schedule, (), (), size, source, tuple(notes), first=first)
        return io.NodeOutput(edit, ui={"text": [_said(schedule, first.scales), *notes]})


def _inputs() -> list[io.Input]:
    return [
        describe(VarModel.Input, "model", tooltip="The model of the sampler; it decides about the size."),
        describe(io.Vae.Input, "vae", tooltip="The tokenizer of the sampler; it encodes the picture."),
        describe(
            io.Image.Input,
            "image",
            optional=True,
            tooltip=f"A picture. {FITTED}",
        ),
        describe(
            io.Latent.Input,
            "latent",
            optional=True,
            tooltip="In place of image: the latent of StageVAR Sampler, of which every code is known.",
        ),
        describe(
            io.Float.Input,
            "variation",
            optional=True,
            default=_VARIATION,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip="How much is drawn anew: 0 the same picture, 0.25 details, 0.5 what is within the "
            "composition, 0.75 all but the coarse layout, 1 another picture. Scales stay up to an area of "
            "(1 - variation) squared.",
        ),
    ]


def _pictured(pair: Pair, image: Tensor) -> tuple[RunState, list[str]]:
    """Pictures as the tokenizer stores them."""
    with inside("image: its "):
        schedule = pair.trained.snap(*image.shape[1:3])
    pictures = fitted(image, pair.trained.image_size(schedule))
    codes = pair.vae.codes(pictures, schedule, pair.network.config.patch)
    notes = ["the picture's transparency is dropped"] if image.shape[3] > 3 else []
    return _state(pair, schedule, codes), notes


def _drawn(pair: Pair, samples: Tensor) -> tuple[RunState, list[str]]:
    """The run that a latent carries; of another latent the codes nearest to it."""
    vae, patch = pair.vae, pair.network.config.patch
    shown = vae.shown(samples, "latent")
    with inside("latent: "):
        state = carried(samples, vae.latent_channels)
    if state is None:
        size = [side * vae.config.stride for side in shown.shape[-2:]]
        with inside("latent: its "):
            schedule = pair.trained.snap(*size)
        height, width = pair.trained.image_size(schedule)
        if [height, width] != size:
            raise ValueError(
                f"latent: it is one of {size[1]}x{size[0]} pixels, which this model does not make; the "
                f"nearest size is {width}x{height}. Connect the picture to image instead, where it is scaled"
            )
        note = "the latent carries no run; its codes are those nearest to it"
        return _state(pair, schedule, vae.nearest(shown, schedule, patch)), [note]
    known = pair.trained.snap(*pair.trained.image_size(state.schedule))
    if state.tokenizer not in ("", vae.checkpoint.source) or state.schedule != known:
        height, width = pair.trained.image_size(known)
        raise ValueError(
            f"latent: it was drawn by {state.model or 'a model'} with {state.tokenizer or 'its tokenizer'} "
            f"over {len(state.schedule)} scales; found {pair.network.checkpoint.source} with "
            f"{vae.checkpoint.source}, which has {len(known)} for {width}x{height}. Connect the vae, and a "
            "model of the sizes, that it was drawn with, or decode it and connect the picture to image"
        )
    with inside("latent: "):
        state.check(known, vae.quantizer(patch), len(state.images))
    return state, []


def _state(pair: Pair, schedule: ScaleSchedule, codes: list[Tensor]) -> RunState:
    """All scales of pictures from their codes, one tensor per scale."""
    every = [code.cpu() for code in codes]
    images = tuple(tuple(ScaleCodes(code[index, None]) for code in every) for index in range(len(every[0])))
    source = pair.vae.checkpoint.source
    return RunState(schedule, images, (0,) * len(images), SamplingSettings(), tokenizer=source)


def _said(schedule: ScaleSchedule, count: int) -> str:
    """Which scales stay."""
    if not count:
        return f"keeps none of {len(schedule)} scales: another picture"
    last = schedule[count - 1]
    said = f"keeps {count} of {len(schedule)} scales, up to {last.width} x {last.height} tokens"
    return f"{said}: the same picture" if count == len(schedule) else f"{said}; draws the others anew"
