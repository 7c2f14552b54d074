"""What nodes that draw share: how it is asked for, one run of it, and what the user reads of it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.model_management as mm
from comfy_api.latest import io

from ...stagevar_core.acceleration.presets import OFF
from ...stagevar_core.sampling.drafts import reduced
from ...stagevar_core.sampling.settings import SamplingSettings
from ...stagevar_core.sampling.trace import Trace
from . import sockets
from .attached import HostTransformer
from .carried import carry
from .running import Job, run
from .schema import StageReportType, describe
from .stopping import keep
from .values import OwnNumber

_LOG = logging.getLogger(__name__)
_NOTES = 6  # on the node, which is small
_OWN_TEXT = "auto: the model's own"
_AGAIN = (
    " ran again on their codes: their keys and values are not in memory, or preset, settings, prompt or "
    "model are other ones"
)


class Drawn(NamedTuple):
    """What a run leaves: a core latent with the state of the run, its report, and the lines on the node."""

    latent: dict[str, Any]
    report: sockets.Report
    lines: list[str]


def draw(job: Job, size: tuple[int, int], made: str, notes: Sequence[str]) -> Drawn:
    """Run a job of pictures of ``size`` (height, width), in words ``made``; ``notes`` come first."""
    _LOG.info("StageVAR: %s, %d scales", made, len(job.schedule))
    f_hat, trace, state = run(job, size)
    if job.resumed is not None and trace.scales[0].ran:
        notes = (*notes, f"the first {job.resumed.scales} scales{_AGAIN}")
    trace.notes[:0] = notes
    if job.stops:
        quantizer = job.vae.quantizer(job.network.config.patch)
        f_hat = reduced(f_hat, quantizer.latent_grid(job.schedule[state.scales - 1]))
        height, width = (side * job.vae.config.stride for side in f_hat.shape[-2:])
        made = f"{made}, as a draft of {width} x {height}"
    latent: dict[str, Any] = {"samples": carry(f_hat.to(mm.intermediate_device()), state)}
    if job.stops and job.paused is not None:
        trace.notes.append(keep(latent, job.paused, job.model))
    _LOG.info("StageVAR: %s", trace.summary())
    return Drawn(latent, sockets.Report(trace.to_dict()), _said(trace, made))


def drawing_inputs() -> list[io.Input]:
    """The seed, and how tokens are drawn: guidance, temperature and what is kept of the likeliest."""
    return [
        describe(
            io.Int.Input,
            "seed",
            optional=True,
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same seed gives the same image; image n of a batch is the one of seed + n.",
        ),
        OwnNumber(
            "cfg",
            high=30.0,
            tooltip="Guidance: how closely the image follows the prompt or class. Infinity: 3 to 4, VAREdit: "
            "3, 1 is unguided and twice as fast. VAR and STAR: 4 at the last scale, 0 is unguided. "
            f"{_OWN_TEXT}.",
        ),
        OwnNumber(
            "temperature",
            high=10.0,
            tooltip="Below 1 the likely codes are favoured: calmer images. Infinity 2B: 0.5, VAREdit: 0.1, "
            f"others: 1. {_OWN_TEXT}.",
        ),
        OwnNumber(
            "top_k",
            high=10000,
            whole=True,
            advanced=True,
            tooltip="The likeliest choices that are kept, of 4096 for VAR and STAR; 0 keeps all. Infinity "
            f"draws bits, which have two: 1 takes the likelier, anything else keeps both. {_OWN_TEXT}.",
        ),
        OwnNumber(
            "top_p",
            high=1.0,
            advanced=True,
            tooltip="The likeliest choices that together have this probability are kept. For Infinity: a bit "
            "whose less likely value has at most 1 - top_p is set, not drawn. 0 switches this off. "
            f"{_OWN_TEXT}.",
        ),
    ]


def report_output() -> io.Output:
    """The report of a run."""
    return describe(
        StageReportType.Output,
        display_name="report",
        tooltip="What ran at every scale, what it cost and what was left out. For Stage Report.",
    )


def settings_of(network: HostTransformer, wanted: Mapping[str, Any]) -> SamplingSettings:
    """Sampling settings of checked values; None stands for the model's own number."""
    numbers = {name: wanted[name] for name in ("cfg", "temperature", "top_k", "top_p")}
    own = network.checkpoint.defaults
    chosen = {name: value for name, value in numbers.items() if value is not None}
    chosen |= {name: own[name] for name in numbers if name not in chosen and name in own}
    if "cfg" in chosen:
        chosen["cfg_scale"] = chosen.pop("cfg")
    chosen |= {name: wanted[name] for name in ("refine", "smooth") if name in wanted}
    return SamplingSettings(**chosen)


def _said(trace: Trace, made: str) -> list[str]:
    """What the node shows of a run: one line, then notes, of which the report has all."""
    work = f"{trace.ratio:.1f}x less work" if trace.ratio > 1.05 else "as much work as without"
    if trace.policy == OFF.name:
        work = "nothing left out"
    seconds = trace.milliseconds / 1e3
    line = f"{trace.policy}: {work}, {seconds:.{0 if seconds >= 10 else 1}f} s, {made}"
    notes = list(dict.fromkeys(trace.notes))
    more = len(notes) - _NOTES
    return [line, *notes[:_NOTES], *([f"{more} more notes are in the report"] if more > 0 else [])]
