"""The sampler node: a text or a class to a latent, scale by scale."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..stagevar_core.checks import inside
from ..stagevar_core.models.star_sampler import MODES
from ..stagevar_core.sampling.paused import PausedRun
from .host import sockets
from .host.attached import Patcher, policy_of
from .host.conditioning import HostConditioning, scheduled_of
from .host.drawing import draw, drawing_inputs, report_output, settings_of
from .host.edit import Edit
from .host.inpainting import Start, latent_start
from .host.pairing import Pair, checked_pair
from .host.running import Job, spare
from .host.schema import CATEGORY, Schema, StageEditType, VarModel, describe
from .host.steering import Frame
from .host.stopping import FINISHED, STOPS, scales_until
from .host.vae import TokenizerVAE
from .host.values import CheckedNode, checked

_MAX_SIDE = 16384
_MAX_BATCH = 64
_ASIDE = "negative has no effect: the picture's own prompt, from StageVAR Change Words, takes its place"
_EDITED = "the edit keeps its part up to here: StageVAR Continue draws the later scales of the whole picture"
# What older versions wrote on the node; their pages stored it in files, from where it lands behind the values
# of their time.
_STATUS = re.compile(r"\d+x\d+.*, \d+ scales|: (?:as many|[\d.]+x fewer) FLOPs", re.DOTALL)


class Sampler(CheckedNode):
    """Next-scale sampling of a VAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARSampler",
            has_intermediate_output=True,  # its line comes back with a cached rerun, where ComfyUI knows how
            display_name="StageVAR Sampler (Infinity, VAR, STAR)",
            category=CATEGORY,
            description="Generates images with an Infinity, VAR or STAR model, from one token to the full "
            "grid. The result is a latent for VAE Decode. With previews on, every scale is shown.",
            search_aliases=[
                *("infinity", "VAR", "STAR", "next-scale", "visual autoregressive", "sampler"),
                *("text to image", "generate", "KSampler"),
            ],
            inputs=_inputs(),
            outputs=[
                describe(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="The sum of all scales' codes. Decode it with the tokenizer's VAE. It holds the "
                    "run, too, from which StageVAR Continue goes on.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        """True; raises ``ValueError`` for values that cannot be, before anything is loaded."""
        return super().validate_inputs(**_mended(values))

    @classmethod
    def execute(
        cls,
        model: Patcher,
        vae: TokenizerVAE,
        positive: HostConditioning,
        negative: HostConditioning | None = None,
        edit: Edit | None = None,
        latent: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """The latent (batch, C, h, w), the report of a run, and on the node what it did.

        Raises ``ValueError`` naming the input that cannot be used, before the first scale, and
        ``RuntimeError`` where one image alone does not fit into memory.
        """
        wanted = checked(_inputs(), _mended(values))
        pair = checked_pair(model, vae)
        network = pair.network
        sockets.texts(positive, negative)
        start = _start(pair, wanted, edit, latent)
        against = (start.edit.prompt if start.edit else None) or negative
        with inside("latent: its " if latent is not None else ""):
            schedule = pair.trained.snap(*start.size)
        settings = settings_of(network, wanted).on(schedule)
        settings.validate(len(schedule), network.config.depth)
        size = pair.trained.image_size(schedule)
        conditioning, notes = scheduled_of(network, positive, against, start.batch, Frame(schedule, size))
        if negative is not None and against is not negative:
            notes = (*notes, _ASIDE)
        made = _made(size, start.size, start.batch)
        policy = policy_of(pair.model.model_options)
        until, said = scales_until(wanted["stop_after"], schedule, policy)
        paused = PausedRun("cpu", spare()) if until < len(schedule) else None
        if paused is not None and start.edit is not None and start.edit.scales > until:
            said = (_EDITED,)
        job = Job(pair.model, pair.vae, conditioning, schedule, settings, wanted["seed"], policy, start.edit)
        job = replace(job, until=until, paused=paused)
        drawn = draw(job, size, made, (*notes, *start.notes, *said))
        return io.NodeOutput(drawn.latent, drawn.report, ui={"text": drawn.lines})


def _start(pair: Pair, wanted: Mapping[str, Any], edit: object, latent: object) -> Start:
    """Size, number and kept parts of the pictures; ``ValueError`` where two inputs say them."""
    if edit is not None and latent is not None:
        raise ValueError(
            "edit and latent: both are connected, and each says what is kept and how large the picture is; "
            "connect one of them"
        )
    asked, batch = (wanted["height"], wanted["width"]), wanted["batch_size"]
    if edit is not None:
        given = sockets.edit("edit", edit)
        given.check(pair.vae.checkpoint.source, pair.trained)
        return Start(given.size, batch, given, given.said(wanted["seed"], batch))
    if latent is None:
        return Start(asked, batch)
    start = latent_start(pair, latent, batch, _MAX_BATCH)
    notes = start.notes if start.edit is None else (*start.notes, *start.edit.notes)
    if start.size != asked:
        size = f"{start.size[1]} x {start.size[0]}"
        notes = (f"width and height are set aside: the latent is {size}", *notes)
    return start._replace(notes=notes)


def _inputs() -> list[io.Input]:
    return [*_model_inputs(), *drawing_inputs(), *_size_inputs(), *_way_inputs()]


def _mended(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without what older versions wrote on the node, where it was stored for a later input."""

    def stale(name: str, value: Any) -> bool:
        return name in ("refine", "stop_after") and isinstance(value, str) and bool(_STATUS.search(value))

    return {name: value for name, value in values.items() if not stale(name, value)}


def _model_inputs() -> list[io.Input]:
    return [
        describe(VarModel.Input, "model", tooltip="From Load StageVAR Model or StageVAR Accelerate."),
        describe(
            io.Vae.Input,
            "vae",
            tooltip="From Load StageVAR Tokenizer (VAE): the tokenizer that belongs to the model. It draws "
            "the previews, and a wrong one is noticed before the run.",
        ),
        describe(
            io.Conditioning.Input,
            "positive",
            tooltip="The prompt, from CLIP Text Encode; it may be empty. For VAR models: Class Label.",
        ),
        describe(
            io.Conditioning.Input,
            "negative",
            optional=True,
            tooltip="What the image should not show. Without it the model's own null text or class is used, "
            "as in training.",
        ),
    ]


def _size_inputs() -> list[io.Input]:
    side = {"optional": True, "default": 1024, "min": 64, "max": _MAX_SIDE, "step": 8}
    snapped = "The model makes the sizes it was trained on: first the nearest ratio, then the nearest area."
    return [
        describe(io.Int.Input, "width", tooltip=f"Wanted width in pixels. {snapped}", **side),
        describe(io.Int.Input, "height", tooltip=f"Wanted height in pixels. {snapped}", **side),
        describe(
            io.Int.Input,
            "batch_size",
            optional=True,
            default=1,
            min=1,
            max=_MAX_BATCH,
            tooltip="Images per run. Memory grows with it; when it runs out, guidance runs its two rows in "
            "turn, and then the images are made one by one.",
        ),
    ]


def _way_inputs() -> list[io.Input]:
    return [
        describe(
            io.Combo.Input,
            "refine",
            optional=True,
            options=["auto", "off", *MODES],
            default="auto",
            advanced=True,
            tooltip="The inner sampler network of some STAR files: auto uses it where the file has one, off "
            "does not, the others say in which of its two ways.",
        ),
        describe(
            io.Boolean.Input,
            "smooth",
            optional=True,
            default=False,
            advanced=True,
            tooltip="VAR and STAR: mixtures of codes instead of drawn ones, for smoother pictures. The "
            "authors of VAR use it for figures, not for measurements.",
        ),
        describe(
            StageEditType.Input,
            "edit",
            optional=True,
            tooltip="From StageVAR Inpaint: a picture of which a part is drawn anew; from StageVAR Vary: one "
            "of which the first scales stay; or from StageVAR Change Words. Width and height are then those "
            "of the picture.",
        ),
        describe(
            io.Latent.Input,
            "latent",
            optional=True,
            tooltip="In place of width and height: a latent, of which every picture is made. From VAE Encode "
            "and Set Latent Noise Mask the part under the mask is drawn anew and the rest stays; without a "
            "mask only its size counts.",
        ),
        describe(
            io.Combo.Input,
            "stop_after",
            optional=True,
            options=STOPS,
            default=FINISHED,
            tooltip="Drafts: stop at the end of the structure stage (about a fifth of the work: layout and "
            "shapes), of the semantic stage (a few hundredths: colours), or after a scale; models have 7 to "
            "14, and from the last one on it is finished. VAE Decode shows them small; StageVAR Continue "
            "finishes those that are picked.",
        ),
    ]


def _made(size: tuple[int, int], asked: tuple[int, int], batch: int) -> str:
    """Number and size of the pictures, and which size was asked for where it is another."""
    other = "" if size == asked else f" (nearest trained size to {asked[1]} x {asked[0]})"
    return f"{f'{batch} images of ' if batch > 1 else ''}{size[1]} x {size[0]}{other}"
