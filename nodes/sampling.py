"""The sampler node: a text or a class to a latent, scale by scale."""

import logging
from collections.abc import Mapping
from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io

from ..stagevar_core.models.star_sampler import MODES
from ..stagevar_core.sampling.settings import SamplingSettings
from ..stagevar_core.sampling.trace import Trace
from ..stagevar_core.schedule import ScaleSchedule
from .host import bridge
from .host.attached import HostTransformer, Patcher, policy_of
from .host.conditioning import HostConditioning, conditioning_of
from .host.edit import Edit
from .host.pairing import checked_pair
from .host.running import Job, run
from .host.schema import CATEGORY, Node, StageEditType, StageReportType, VarModel, describe
from .host.vae import TokenizerVAE

_LOG = logging.getLogger(__name__)
_MAX_SIDE = 16384
_MAX_BATCH = 64
_OWN = -1.0  # of sampling settings: the model's own
_OWN_TEXT = "-1: the model's own"


class Sampler(Node):
    """Next-scale sampling of a VAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return describe(
            io.Schema,
            node_id="StageVARSampler",
            display_name="StageVAR Sampler",
            category=CATEGORY,
            description="Generates images with an Infinity, VAR or STAR model, from one token to the full "
            "grid. The result is a latent for VAE Decode. With previews on, every scale is shown.",
            search_aliases=["infinity", "VAR", "STAR", "next-scale", "visual autoregressive", "sampler"],
            inputs=[*_model_inputs(), *_sampling_inputs(), *_size_inputs(), *_drawing_inputs()],
            outputs=[
                describe(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="The sum of all scales' codes. Decode it with the tokenizer's VAE.",
                ),
                describe(
                    StageReportType.Output,
                    display_name="report",
                    tooltip="What ran at every scale, what it cost and what was left out. For Stage Report.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(  # noqa: PLR0913 (the host passes inputs by name)
        cls,
        model: Patcher,
        vae: TokenizerVAE,
        positive: HostConditioning,
        seed: int,
        cfg: float,
        temperature: float,
        top_k: int,
        top_p: float,
        width: int,
        height: int,
        batch_size: int,
        negative: HostConditioning | None = None,
        refine: str = "auto",
        smooth: bool = False,
        edit: Edit | None = None,
    ) -> io.NodeOutput:
        """The latent (batch, C, h, w) and the report of a run.

        Raises ``ValueError`` naming the input that cannot be used, before the first scale, and
        ``RuntimeError`` where one image alone does not fit into memory.
        """
        pair = checked_pair(model, vae)
        network = pair.network
        if not 1 <= batch_size <= _MAX_BATCH:
            raise ValueError(f"batch_size is {batch_size}; expected 1 to {_MAX_BATCH}")
        if edit is not None:
            edit.check(pair.vae.checkpoint.source, pair.trained)
            height, width = edit.size
        schedule = pair.trained.snap(height, width)
        wanted = {"cfg": cfg, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings = _settings(network, wanted, refine=refine, smooth=smooth)
        settings.validate(len(schedule), network.config.depth)
        conditioning, notes = conditioning_of(network, positive, negative, batch_size)
        size = pair.trained.image_size(schedule)
        report = _size_report(size, (height, width), schedule)
        _LOG.info("StageVAR: %s, %d image%s", report, batch_size, "" if batch_size == 1 else "s")
        bridge.show_text(report, cls.hidden.unique_id)
        policy = policy_of(pair.model.model_options)
        job = Job(pair.model, pair.vae, conditioning, schedule, settings, seed, policy, edit)
        f_hat, trace = run(job, size)
        trace.notes[:0] = (*notes, *(edit.notes if edit else ()))
        _LOG.info("StageVAR: %s", trace.summary())
        bridge.show_text(_said(trace, report), cls.hidden.unique_id)
        return io.NodeOutput({"samples": f_hat.to(mm.intermediate_device())}, trace.to_dict())


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


def _sampling_inputs() -> list[io.Input]:
    return [
        describe(
            io.Int.Input,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same seed gives the same image; image n of a batch is the one of seed + n.",
        ),
        describe(
            io.Float.Input,
            "cfg",
            default=_OWN,
            min=_OWN,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance: how closely the image follows the prompt or class. Infinity: 3 to 4, 1 is "
            f"unguided and twice as fast. VAR and STAR: 4 at the last scale, 0 is unguided. {_OWN_TEXT}.",
        ),
        describe(
            io.Float.Input,
            "temperature",
            default=_OWN,
            min=_OWN,
            max=10.0,
            step=0.05,
            round=0.01,
            tooltip="Below 1 the likely codes are favoured: calmer images. Infinity 2B: 0.5, others: 1. "
            f"{_OWN_TEXT}.",
        ),
        describe(
            io.Int.Input,
            "top_k",
            default=int(_OWN),
            min=int(_OWN),
            max=10000,
            advanced=True,
            tooltip="The likeliest choices that are kept, of 4096 for VAR and STAR; 0 keeps all. Infinity "
            f"draws bits, which have two: 1 takes the likelier, anything else keeps both. {_OWN_TEXT}.",
        ),
        describe(
            io.Float.Input,
            "top_p",
            default=_OWN,
            min=_OWN,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="The likeliest choices that together have this probability are kept. For Infinity: a bit "
            "whose less likely value has at most 1 - top_p is set, not drawn. 0 switches this off. "
            f"{_OWN_TEXT}.",
        ),
    ]


def _size_inputs() -> list[io.Input]:
    side = {"default": 1024, "min": 64, "max": _MAX_SIDE, "step": 8}
    snapped = "The model makes the sizes it was trained on: first the nearest ratio, then the nearest area."
    return [
        describe(io.Int.Input, "width", tooltip=f"Wanted width in pixels. {snapped}", **side),
        describe(io.Int.Input, "height", tooltip=f"Wanted height in pixels. {snapped}", **side),
        describe(
            io.Int.Input,
            "batch_size",
            default=1,
            min=1,
            max=_MAX_BATCH,
            tooltip="Images per run. Memory grows with it; when it runs out, guidance runs its two rows in "
            "turn, and then the images are made one by one.",
        ),
    ]


def _drawing_inputs() -> list[io.Input]:
    return [
        describe(
            io.Combo.Input,
            "refine",
            options=["auto", "off", *MODES],
            default="auto",
            advanced=True,
            tooltip="The inner sampler network of some STAR files: auto uses it where the file has one, off "
            "does not, the others say in which of its two ways.",
        ),
        describe(
            io.Boolean.Input,
            "smooth",
            default=False,
            advanced=True,
            tooltip="VAR and STAR: mixtures of codes instead of drawn ones, for smoother pictures. The "
            "authors of VAR use it for figures, not for measurements.",
        ),
        describe(
            StageEditType.Input,
            "edit",
            optional=True,
            tooltip="From StageVAR Edit: a picture of which a part is drawn anew. Width and height are then "
            "those of the picture.",
        ),
    ]


def _settings(network: HostTransformer, wanted: Mapping[str, float], **drawing: Any) -> SamplingSettings:
    """Sampling settings; negative numbers stand for the model's own."""
    own = network.checkpoint.defaults
    chosen = {name: value for name, value in wanted.items() if value >= 0}
    chosen |= {name: own[name] for name in wanted if name not in chosen and name in own}
    if "cfg" in chosen:
        chosen["cfg_scale"] = chosen.pop("cfg")
    return SamplingSettings(**chosen, **drawing)


def _said(trace: Trace, size: str) -> str:
    """The summary on the node, which shows two lines and scrolls for more: what was saved comes first."""
    saved, used = trace.summary().split(", ", 1)
    return "\n".join((saved, used, size, *trace.notes))


def _size_report(size: tuple[int, int], wanted: tuple[int, int], schedule: ScaleSchedule) -> str:
    asked = "" if size == wanted else f" (nearest trained size to {wanted[1]}x{wanted[0]})"
    return f"{size[1]}x{size[0]}{asked}, {len(schedule)} scales"
