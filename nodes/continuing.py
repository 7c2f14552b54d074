"""The node that goes on with runs that stopped."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..stagevar_core.sampling.paused import PausedRun
from ..stagevar_core.sampling.settings import SamplingSettings
from ..stagevar_core.sampling.state import RunState
from .host import sockets
from .host.attached import Patcher, policy_of
from .host.conditioning import HostConditioning, scheduled_of
from .host.drawing import draw, report_output
from .host.pairing import checked_pair
from .host.running import Job, spare
from .host.schema import CATEGORY, Schema, VarModel, describe
from .host.steering import Frame
from .host.stopping import FINISHED, STOPS, begun_elsewhere, paused_in, scales_until, state_in
from .host.vae import TokenizerVAE
from .host.values import CheckedNode, OwnNumber, checked

_NAMES = {"cfg": "cfg_scale", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
_OWN = "auto: as the run was begun"
_TWINS = "some pictures are the same run with the same seed, so they come out the same; give a seed"
_UNMASKED = "the latent's noise mask has no effect here; StageVAR Sampler follows it, on finished pictures"
_IN_TURN = "the prompts are taken in turn by the pictures of this latent, whichever they were begun with"


class Continue(CheckedNode):
    """LATENT of runs that stopped to LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARContinue",
            has_intermediate_output=True,  # its line comes back with a cached rerun, where ComfyUI knows how
            display_name="StageVAR Continue (finish drafts)",
            category=CATEGORY,
            description="Finishes drafts: goes on with runs of StageVAR Sampler that stopped, exactly as if "
            "they had not, or with another preset, prompt, guidance or seed for the scales that are left.",
            search_aliases=["draft", "finish", "resume", "continue", "pick", "pause", "upscale draft"],
            inputs=_inputs(),
            outputs=[
                describe(
                    io.Latent.Output,
                    display_name="latent",
                    tooltip="The finished pictures, for VAE Decode; or later drafts, to go on from again.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        vae: TokenizerVAE,
        latent: Mapping[str, Any],
        positive: HostConditioning,
        negative: HostConditioning | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        """The latent (batch, C, h, w) and the report, and on the node what it did; finished runs as they are.

        Raises ``ValueError`` naming the input that cannot be used, before the first scale, and
        ``RuntimeError`` where one image alone does not fit into memory.
        """
        wanted = checked(_inputs(), values)
        pair = checked_pair(model, vae)
        state = state_in("latent", latent, pair)
        sockets.texts(positive, negative)
        schedule, policy = state.schedule, policy_of(pair.model.model_options)
        until, notes = scales_until(wanted["stop_after"], schedule, policy)
        if until <= state.scales:
            done = "finished" if state.finished else f"drafts after scale {state.scales} of {len(schedule)}"
            line = f"nothing left to do: the pictures are {done}"
            return io.NodeOutput(latent, ExecutionBlocker(None), ui={"text": [line]})
        settings = _settings(state.settings, wanted).on(schedule)
        settings.validate(len(schedule), pair.network.config.depth)
        batch = len(state.images)
        height, width = size = pair.trained.image_size(schedule)
        frame = Frame(schedule, size)
        conditioning, said = scheduled_of(pair.network, positive, negative, batch, frame)
        if wanted["seed"] is not None:
            seeds = tuple((wanted["seed"] + index) % 2**64 for index in range(batch))
            state = replace(state, seeds=seeds)
        stops = until < len(schedule)
        job = Job(
            *(pair.model, pair.vae, conditioning, schedule, settings, state.seeds[0], policy),
            until=until,
            resumed=state,
            paused=PausedRun("cpu", spare() if stops else 0, paused_in(latent, pair.model)),
        )
        made = f"{f'{batch} images of ' if batch > 1 else ''}{width} x {height}"
        begun = (*_differing(state, wanted), *begun_elsewhere(state, pair))
        masked = () if latent.get("noise_mask") is None else (_UNMASKED,)
        notes = (*said, *begun, *masked, *_notes(state, positive), *notes, *_picked(latent, batch))
        drawn = draw(job, size, made, notes)
        return io.NodeOutput(drawn.latent, drawn.report, ui={"text": drawn.lines})


def _settings(begun: SamplingSettings, wanted: Mapping[str, Any]) -> SamplingSettings:
    """Those of the run, but for what is asked for."""
    return replace(begun, **{own: wanted[name] for name, own in _NAMES.items() if wanted[name] is not None})


def _differing(state: RunState, wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """That the runs were begun with different settings, of which only the first one's are gone on with."""
    shown = {own: name for name, own in _NAMES.items()}
    names = [shown.get(own, own) for own in state.differing if wanted.get(shown.get(own, own)) is None]
    if not names:
        return ()
    return (
        f"begun with different values of {', '.join(names)}; all go on with those of the first picture. "
        "Finish them one by one to keep their own",
    )


def _picked(latent: Mapping[str, Any], batch: int) -> tuple[str, ...]:
    """Which draft was picked: ComfyUI takes the last one, without a word, where a number is too large.

    Of several nothing is said, as nodes that repeat them count the copies on.
    """
    places: list[int] = latent.get("batch_index") or []
    return (f"draft {places[0]} of its batch; 0 is the first",) if batch == len(places) == 1 else ()


def _notes(state: RunState, positive: HostConditioning) -> tuple[str, ...]:
    """What of the pictures may not be as somebody expects it."""
    runs = {(seed, state.to_bytes(index)) for index, seed in enumerate(state.seeds)}
    twins = (_TWINS,) if len(runs) < len(state.images) else ()
    prompts = getattr(positive[0][0], "shape", (1,))
    return (*twins, _IN_TURN) if prompts and prompts[0] > 1 else twins


def _inputs() -> list[io.Input]:
    return [*_sources(), *_changes()]


def _sources() -> list[io.Input]:
    return [
        describe(
            VarModel.Input,
            "model",
            tooltip="The model of the drafts. StageVAR Accelerate may lie between, with the same preset or "
            "another one.",
        ),
        describe(io.Vae.Input, "vae", tooltip="The VAE of the drafts."),
        describe(
            io.Latent.Input,
            "latent",
            tooltip="From StageVAR Sampler with stop_after, through Latent From Batch to pick, Repeat Latent "
            "Batch to finish one several times, or Load Latent.",
        ),
        describe(
            io.Conditioning.Input,
            "positive",
            tooltip="The prompt of the drafts, or another one for the scales that are left.",
        ),
        describe(
            io.Conditioning.Input,
            "negative",
            optional=True,
            tooltip="What the image should not show. Connect it where the drafts had one.",
        ),
    ]


def _changes() -> list[io.Input]:
    return [
        OwnNumber(
            "seed",
            high=0xFFFFFFFFFFFFFFFF,
            whole=True,
            tooltip="A number draws other details: image n of the latent with this seed + n. auto: the seeds "
            "of the drafts, which end in the pictures that they would have become.",
        ),
        OwnNumber("cfg", high=30.0, stages=True, tooltip=f"Guidance of the scales that are left. {_OWN}."),
        OwnNumber(
            "temperature", high=10.0, stages=True, tooltip=f"Below 1 the likely codes are favoured. {_OWN}."
        ),
        OwnNumber("top_k", high=10000, whole=True, advanced=True, tooltip=f"As in StageVAR Sampler. {_OWN}."),
        OwnNumber("top_p", high=1.0, advanced=True, tooltip=f"As in StageVAR Sampler. {_OWN}."),
        describe(
            io.Combo.Input,
            "stop_after",
            optional=True,
            options=STOPS,
            default=FINISHED,
            tooltip="Stop again, for later drafts: after the structure stage, or after a scale; models have "
            "7 to 14, and from the last one on it is finished.",
        ),
    ]
