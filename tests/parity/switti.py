"""Parity of Switti: generation with guidance on and off by scale, mixtures of codes, teacher forcing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagevar_core.autoencoders.vq import VQTokenizer
from stagevar_core.checkpoints import build
from stagevar_core.checkpoints.convert import convert
from stagevar_core.checkpoints.families_switti import SWITTI_KEYS
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.contract import Drawing
from stagevar_core.models.switti import Switti
from stagevar_core.models.switti_config import SwittiConfig
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule

from .heads import WatchedHead
from .infinity import OneStreamNoise
from .report import Report, UnreleasedOption, compare_all
from .var import (
    IMAGE,
    LATENT,
    LOGITS,
    SMOOTH,
    Probe,
    decodes,
    detected,
    load_tokenizer,
    read,
    schedule_of,
    weights,
)

TOLERANCES = {
    "idx": 0.0,
    **dict.fromkeys(("f_hat", "var_input", "h"), LATENT),
    "image": IMAGE,
}
RELEASED = {"attn_l2_norm": True, "rope": True, "use_swiglu_ffn": True, "norm_eps": 1e-6}
# Our names of the entries of config.json that Switti alone has.
NAMES = {
    "patch_nums": "sides",
    "use_ar": "ar",
    "use_crop_cond": "crop",
    "context_dim": "text_width",
    "pooled_dim": "pooled_width",
}


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is Switti's."""
    return config.get("model") == "switti"


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    found = [f"{key} {config[key]}" for key, usual in RELEASED.items() if config.get(key, usual) != usual]
    if found:
        raise UnreleasedOption(", ".join(found))
    tokenizer, model = load_tokenizer(folder, config["vae"]), load_transformer(folder, config)
    schedule = schedule_of(config)
    for name, options in config["runs"].items():
        stored = read(folder, f"run_{name}")
        run = Run(options, schedule, len(stored["in.context"]) // 2)
        measured = _generate(model, tokenizer, run, Texts(model, stored))
        if "image" in stored and not decodes(tokenizer):
            report.missing(name, "image", "an image is stored, but the tokenizer has no decoder")
        bound = SMOOTH if options.get("more_smooth") else 0.0
        expected = run.as_here(stored, measured)
        compare_all(report, name, measured, expected, lambda q, b=bound: _tolerance(q, b))
    if (folder / "teacher_forced.safetensors").is_file():
        _compare_teacher_forced(folder, model, tokenizer, schedule, report)


def load_transformer(folder: Path, config: dict) -> Switti:
    """The transformer of a folder in float32, recognised from its tensors and compared with its config.

    Released ones have 64 channels per head, which no tensor shows; widths that are no multiple of that are
    not recognised, and taken as the config says.
    """
    unseen = {
        "heads": config["num_heads"],
        "rope_norm": config.get("rope_size", 128.0),
        "rope_base": config.get("rope_theta", 10000.0),
    }
    if config["embed_dim"] % 64:
        return _as_told(folder, config, unseen)
    checkpoint = detected(
        folder, {key: value for key, value in config.items() if key != "num_heads"}, **NAMES
    )
    checkpoint.config = replace(checkpoint.config, **unseen)
    return build(checkpoint)


def _as_told(folder: Path, config: dict, unseen: dict[str, Any]) -> Switti:
    """The transformer with the sizes of config.json."""
    tensors = convert(weights(folder), SWITTI_KEYS).tensors
    sides, hidden = tuple(config["patch_nums"]), len(tensors["blocks.0.ffn.gate.weight"])
    shape = SwittiConfig(
        depth=config["depth"],
        width=config["embed_dim"],
        hidden=hidden,
        levels=len(sides),
        ar=config["use_ar"],
        sides=sides,
        vocab=config["vocab_size"],
        dim=config["Cvae"],
        text_width=config["context_dim"],
        pooled_width=config["pooled_dim"],
        crop=config["use_crop_cond"],
        **unseen,
    )
    model = Switti(shape, device="meta")
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


class Texts:
    """The texts of a run, taken out of what is stored: prompts, then as many null prompts or none.

    The pooled texts are stored on their own; ``pooled`` takes the model's place of looking them up. Of what
    pictures are cropped from, ``crop_numbers`` likewise.
    """

    def __init__(self, model: Switti, stored: dict[str, Tensor], *, guided: bool = True) -> None:
        features, seen = stored.pop("in.context").float(), stored.pop("in.attn_bias") == 0
        self._pooled, self._model = stored.pop("in.pooled").float(), model
        self._crops: Tensor | None = None
        if "in.height" in stored:
            self._crops = crops(stored.pop("in.height"), stored.pop("in.width"))
        rows = [row[kept] for row, kept in zip(features, seen, strict=True)]
        images = len(rows) // 2 if guided else len(rows)
        against = tuple(rows[images:]) if guided else None
        self.conditioning = TextConditioning(tuple(rows[:images]), against)

    def __enter__(self) -> "Texts":
        self._model.pooled = lambda texts, sight=None: self._pooled[: len(texts)]
        if self._crops is not None:
            self._model.crop_numbers = lambda rows, device: self._crops
        return self

    def __exit__(self, *error: object) -> None:
        del self._model.pooled
        if self._crops is not None:
            del self._model.crop_numbers


def crops(heights: Tensor, widths: Tensor) -> Tensor:
    """Sizes of pictures, (B,) each, to what the model is told in training, (B, 4).

    The short side becomes 512 and the middle is cut out; sizes are truncated, in float32.
    """
    sizes = torch.stack((heights, widths), dim=1).float()
    factors = (512.0 / sizes.double().amin(dim=1, keepdim=True)).float()
    resized = (sizes * factors).trunc()
    return torch.cat((resized, ((resized - 512) / 2).floor().clamp(min=0)), dim=1)


class Run:
    """The options of one run of so many images, as the settings here say them."""

    def __init__(self, options: dict, schedule: ScaleSchedule, images: int) -> None:
        self.options, self.schedule, self.images = options, schedule, images
        self.on = options.get("turn_on_cfg_start_si", 0)
        self.off = options.get("turn_off_cfg_start_si", 10)

    def guided(self, scale: Scale) -> bool:
        """Whether a scale has guidance."""
        return self.on <= scale.index < self.off

    def over(self, scale: Scale) -> bool:
        """Whether the official code runs the conditional rows alone."""
        return scale.index >= self.off

    @property
    def settings(self) -> SamplingSettings:
        """The strength rises with the place of a scale; the temperature is for scales without guidance."""
        last, options = max(len(self.schedule) - 1, 1), self.options
        strengths = [options["cfg"] * scale.index / last * self.guided(scale) for scale in self.schedule]
        cold = options.get("last_scale_temp") or 1.0
        late = [scale.index >= max(self.on, self.off) for scale in self.schedule]
        return SamplingSettings(
            cfg_scale=tuple(strengths),
            temperature=tuple(cold if each else 1.0 for each in late),
            top_k=options["top_k"],
            top_p=options["top_p"],
            smooth=options.get("more_smooth", False),
        )

    def drawing(self, drawing: Drawing) -> Drawing:
        """The mixtures of the official code, which go on where its guidance has not begun."""
        smooth = drawing.scale.index >= self.options.get("smooth_start_si", 0) and not self.over(
            drawing.scale
        )
        return replace(drawing, smooth=drawing.smooth and smooth, unguided=False)

    def as_here(self, stored: dict[str, Tensor], measured: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is stored by our names, which say nothing of what enters a mixture.

        Where nothing is guided the official code runs the other rows all the same, and adds none of them.
        """
        found = {}
        for name, value in stored.items():
            if name.endswith(".logits_smooth_in"):
                scale = self.schedule[int(name[5:7])]
                rising = 1.0 + scale.index / max(len(self.schedule) - 1, 1)
                name, value = f"scale{scale.index:02d}.logits_post", value / rising
            rows = len(measured.get(name, value))
            if rows < len(value) and (name.endswith("logits_pre") or "dbg" in name):
                value = value[:rows]
            found[name] = value
        return found


class SwittiProbe(Probe):
    """Also what the text becomes; tokens of scales without mixtures alone."""

    def __init__(self, model: Switti, tokenizer: VQTokenizer, run: Run) -> None:
        super().__init__(model, tokenizer)
        self._run = run

    def watched(self, head):
        """With the options of the run in place of the family's own."""
        head.smooth_from = 0
        return WatchedHead(head, self._drawn, self._run.drawing)

    def _block_in(self, module: object, arguments: tuple) -> None:
        super()._block_in(module, arguments)
        model, state = self.model, arguments[1].conditioned
        self.seen.setdefault("dbg.cond_BD", state.start)
        crop = torch.zeros(1)
        if model.crop is not None:
            crop = model.crop(model.crop_numbers(len(state.start), state.start.device))
        self.seen.setdefault("dbg.crop_cond", crop)


@torch.inference_mode()
def _generate(model: Switti, tokenizer: VQTokenizer, run: Run, texts: Texts) -> dict[str, Tensor]:
    """One run; everything measured, under the names of the fixtures."""
    with SwittiProbe(model, tokenizer, run) as probe, texts:
        result = generate(
            model,
            texts.conditioning,
            run.schedule,
            run.settings,
            noise=OneStreamNoise(run.options.get("g_seed", run.options.get("seed"))),
            quantizer=tokenizer.quantizer(),
            monitor=probe,
        )
    if not decodes(tokenizer):
        return probe.seen
    return probe.seen | {"image": (tokenizer.decode(result.f_hat) + 1.0) / 2.0}


def _tolerance(quantity: str, least: float) -> float:
    tolerance = TOLERANCES.get(quantity, LOGITS)
    return max(tolerance, least) if tolerance else 0.0


@torch.inference_mode()
def _compare_teacher_forced(
    folder: Path, model: Switti, tokenizer: VQTokenizer, schedule: ScaleSchedule, report: Report
) -> None:
    stored = read(folder, "teacher_forced")
    ids = [stored.pop(f"scale{scale.index:02d}.idx").unflatten(1, scale.grid) for scale in schedule]
    inputs = tokenizer.quantizer().teacher_inputs(ids, schedule)
    with Texts(model, stored, guided=False) as texts:
        logits = teacher_forced(model, texts.conditioning, inputs, schedule)
    compare_all(
        report,
        "teacher forced",
        {"var_input": inputs, "logits": logits},
        stored,
        lambda quantity: _tolerance(quantity, 0.0),
    )
