"""The node that shows the picture after every scale."""

from typing import Any

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..stagevar_core.checks import inside
from ..stagevar_core.sampling.state import RunState
from .host import sockets
from .host.carried import carried
from .host.schema import CATEGORY, Schema, describe
from .host.vae import TokenizerVAE
from .host.values import CheckedNode, checked

_FAST, _FULL = "fast", "full"


class Scales(CheckedNode):
    """LATENT to the pictures that its run went through."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARScales",
            has_intermediate_output=True,  # its line comes back with a cached rerun, where ComfyUI knows how
            display_name="StageVAR Scales to Images",
            category=CATEGORY,
            description="The picture after every scale of a run, all in one size: for a strip, an animation "
            "or a video with ComfyUI's own nodes.",
            search_aliases=["scales", "steps", "strip", "animation", "timelapse", "GIF", "video", "frames"],
            inputs=_inputs(),
            outputs=[
                describe(
                    io.Image.Output,
                    display_name="images",
                    tooltip="One picture per scale, coarse to fine; of a batch one image after the other. "
                    "Scales that a preset skipped add nothing and are left out.",
                )
            ],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], vae: TokenizerVAE, **values: Any) -> io.NodeOutput:
        """Pictures (B x scales, height, width, 3) in 0..1, and on the node how many.

        Raises ``ValueError`` for a latent that carries no run of this tokenizer.
        """
        way, tokenizer = checked(_inputs(), values)["decoding"], sockets.vae("vae", vae)
        state = _run_of(sockets.latent("latent", latent)["samples"], tokenizer)
        final, patch = state.schedule.final, _patch(state)
        with inside("latent: "):
            quantizer = tokenizer.quantizer(patch)
            state.check(state.schedule, quantizer, len(state.images))
        size = [side * patch * tokenizer.config.stride for side in final.grid]
        found: list[Tensor] = []
        for index in range(len(state.images)):
            latents = torch.cat(state.image(index).latents(quantizer, each=True))
            found.append(tokenizer.decode(latents) if way == _FULL else _coloured(latents, tokenizer, size))
        counts = [len(pictures) for pictures in found]
        return io.NodeOutput(torch.cat(found), ui={"text": [_said(state, counts)]})


def _inputs() -> list[io.Input]:
    return [
        describe(
            io.Latent.Input,
            "latent",
            tooltip="The latent of StageVAR Sampler, which holds what every scale added.",
        ),
        describe(io.Vae.Input, "vae", tooltip="The tokenizer of the sampler."),
        describe(
            io.Combo.Input,
            "decoding",
            optional=True,
            options=[_FAST, _FULL],
            default=_FAST,
            tooltip="fast: one colour per latent pixel, at almost no cost, blurred and paler. full: the "
            "decoder, as VAE Decode once per scale.",
        ),
    ]


def _run_of(samples: Tensor, vae: TokenizerVAE) -> RunState:
    """The run that a latent carries."""
    vae.shown(samples, "latent")
    with inside("latent: "):
        state = carried(samples, vae.latent_channels)
    if state is None:
        raise ValueError(
            "latent: it carries no run; expected the latent of StageVAR Sampler, as it gave it; a latent of "
            "VAE Encode, or one that was scaled or mixed, has no scales"
        )
    if state.tokenizer not in ("", vae.checkpoint.source):
        raise ValueError(
            f"vae: the latent was drawn with {state.tokenizer}; found {vae.checkpoint.source}. Connect the "
            "vae of the sampler"
        )
    return state


def _patch(state: RunState) -> int:
    """Latent pixels per token side, as its codes lie."""
    pairs = zip(state.schedule, state.images[0], strict=False)
    return next((code.drawn.shape[-2] // scale.height for scale, code in pairs if code.drawn is not None), 1)


def _coloured(latents: Tensor, vae: TokenizerVAE, size: list[int]) -> Tensor:
    """Latents (B, C, h, w) by colours alone, (B, height, width, 3) in 0..1."""
    colours = (vae.colours()(latents) + 1.0) / 2.0
    whole = comfy.utils.common_upscale(colours, size[1], size[0], "bicubic", "disabled")
    return whole.clamp(0.0, 1.0).movedim(1, -1).to(vae.output_device)


def _said(state: RunState, counts: list[int]) -> str:
    """How many pictures there are."""
    images = f" of each of {len(counts)} images" if len(counts) > 1 else ""
    if len(set(counts)) > 1:
        return f"{sum(counts)} pictures of {len(counts)} images, {min(counts)} to {max(counts)} of each"
    skipped = state.scales - counts[0]
    out = f"; {skipped} of {state.scales} scales were skipped and are left out" if skipped else ""
    return f"{counts[0]} pictures{images}{out}"
