"""Parity of Infinity: generation, teacher forcing, tokenizer and rotary tables against stored outputs."""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stagevar_core.autoencoders.bsq import BitwiseQuantizer, BSQTokenizer
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.contract import Noise
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.network.attention import sdpa
from stagevar_core.network.rotary import rotary_angles, rotary_coordinates, rotate
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule, infinity_aspect_table
from tests.support.replay import ReplayedNoise

from .infinity_probe import Probe
from .infinity_setup import check_released, load_decoder, load_tokenizer, load_transformer
from .report import Report, UnreadableFolder, compare_all, image_bytes_bgr

LOGITS, BFLOAT16_LOGITS, LATENT, IMAGE, LEVEL = 1e-4, 2e-2, 1e-5, 2e-4, 1.0
# Exact quantities first; whatever is not listed is an activation of a network, with the tolerance of logits.
TOLERANCES = {
    **dict.fromkeys(("bits", "bits_vae", "bits_tokens", "target_bits"), 0.0),
    **dict.fromkeys(("next_input", "x_BLC_wo_prefix", "teacher_input", "area_input"), LATENT),
    **dict.fromkeys(
        ("summed_codes", "summed_codes_every4", "summed_codes_from_bits", "quantized_sum"), LATENT
    ),
    "text.after_norm": LATENT,
    **dict.fromkeys(("image_float", "image_recon_from_z", "image_recon_from_bits"), IMAGE),
    "image_uint8_bgr_nhwc": LEVEL,
}


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is Infinity's: its transformer, its bitwise tokenizer or its rotary tables.

    Tasks other than generating have weights of the same names and a runner of their own.
    """
    if config.get("task", "generate") != "generate":
        return False
    transformer, vae = config.get("transformer"), config.get("vae")
    if isinstance(transformer, dict):
        return "d_vae_in" in transformer
    if isinstance(vae, dict):
        return "codebook_dim" in vae
    return "rope2d" in str(config.get("mode", "")) or (folder / "positions.json").is_file()


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    check_released(config)
    inputs = stored(folder, "inputs", required=False)
    if "runs" in config:
        _compare_generation(folder, config, inputs, report)
    elif "raw_features" in inputs:
        _compare_teacher_forced(folder, config, inputs, report)
    elif "image" in inputs:
        _compare_tokenizer(folder, config, inputs, report)
    elif (folder / "positions.json").is_file() or (folder / "tables.safetensors").is_file():
        _compare_rotary(folder, config, report)
    else:
        raise UnreadableFolder("it has neither runs, raw features, an image nor rotary tables")


def stored(folder: Path, name: str, *, required: bool = True) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        if required:
            raise UnreadableFolder(f"{path.name} is missing")
        return {}
    return load_file(path)


def tolerance_of(quantity: str, activations: float = LOGITS) -> float:
    return TOLERANCES.get(quantity, activations)


def schedule_of(config: dict, key: str = "scale_schedule") -> ScaleSchedule:
    """The schedule with the rotary reference of the full one of its aspect ratio."""
    grids = infinity_aspect_table().grids
    ratio = min(grids, key=lambda known: abs(known - config.get("h_div_w", 1.0)))
    return ScaleSchedule.of(config[key], grids[ratio][-1])


def packed_text(inputs: dict[str, Tensor], prefix: str = "") -> tuple[Tensor, ...]:
    """The packed text of a folder as one tensor per prompt."""
    bounds = inputs[f"{prefix}cu_seqlens"].tolist()
    features = inputs[f"{prefix}text_features"]
    return tuple(features[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True))


# ---------------------------------------------------------------------------------------------- generation


def _compare_generation(folder: Path, config: dict, inputs: dict[str, Tensor], report: Report) -> None:
    model = load_transformer(config, stored(folder, "transformer"))
    weights = stored(folder, "vae", required=False)
    tokenizer = load_decoder(config, weights) if weights else None
    for name, options in config["runs"].items():
        options = {**defaults_of(config), **options}
        expected = stored(folder, f"outputs_{name}")
        measured = generated(model, tokenizer, config, inputs, options, expected)
        activations = BFLOAT16_LOGITS if options.get("ca_bf16") else LOGITS
        if tokenizer is None and any(key.startswith("image") for key in expected):
            report.missing(name, "image", "images are stored, but no vae.safetensors to decode with")
        compare_all(report, name, measured, expected, lambda q, a=activations: tolerance_of(q, a))


def defaults_of(config: dict) -> dict:
    """Options of a run that the folder states once for all, or that every official script uses."""
    shared = {key: config[key] for key in ("cfg_insertion_layer", "top_k", "top_p") if key in config}
    return {"top_k": 900, "top_p": 0.97, **shared, **config.get("defaults", {})}


def is_greedy(options: dict, expected: dict[str, Tensor]) -> bool:
    """Whether a run takes the larger logit: it says so, or it stores nothing that a draw could come from."""
    if "mode" in options:
        return options["mode"] == "greedy"
    drawn = "seed" in options or any(name.endswith(".exp_noise") for name in expected)
    return "argmax" in options.get("selection", "") or not drawn


class OneStreamNoise:
    """The official draws where none are stored: one generator for the whole batch."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.seeds = (seed,)

    def exponential(self, scale, shape, device) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32).exponential_(generator=self._generator)


def noise_of(options: dict, expected: dict[str, Tensor], scales: int) -> Noise:
    """The stored draws of a run, else those of its seed."""
    draws = [expected.get(f"scale{index:02d}.exp_noise") for index in range(scales)]
    if all(draw is not None for draw in draws):
        return ReplayedNoise(draws)
    if "seed" not in options:
        raise UnreadableFolder("a sampled run stores neither the noise of every scale nor a seed")
    return OneStreamNoise(options["seed"])


def attention_with_rounded_text(q: Tensor, k: Tensor, v: Tensor, *, scale=None, mask=None) -> Tensor:
    """The official float32 path: attention to text (not self-attention, scale 1) goes through bfloat16."""
    if scale == 1.0:
        return sdpa(q, k, v, scale=scale, mask=mask)
    q, k, v = (x.bfloat16().float() for x in (q, k, v))
    return sdpa(q, k, v, scale=scale, mask=mask).bfloat16().float()


def settings_of(options: dict, greedy: bool) -> SamplingSettings:
    layers = options.get("ins", options.get("cfg_insertion_layer", [0]))
    return SamplingSettings(
        cfg_scale=options["cfg"],
        temperature=options["tau"],
        top_k=options["top_k"],
        top_p=options["top_p"],
        # The official code accepts 1 in this list and does nothing for it.
        cfg_layers=tuple(layer for layer in layers if layer != 1),
        greedy=greedy,
    )


def leaked_bits(inputs: dict[str, Tensor], index: int) -> Tensor:
    """Known bits of a scale, stored (B, H, W, d) or (B, 1, H, W, d), as (B, d, H, W)."""
    bits = inputs[f"leak_bits_scale{index:02d}"]
    return bits.reshape(len(bits), *bits.shape[-3:]).movedim(-1, 1)


def generated(
    model: Infinity,
    tokenizer: BSQTokenizer | None,
    config: dict,
    inputs: dict[str, Tensor],
    options: dict,
    expected: dict[str, Tensor],
    source: Tensor | None = None,
) -> dict[str, Tensor]:
    """One run; everything measured, under the names of the fixtures. ``source``: of a picture to edit."""
    schedule, features = schedule_of(config), packed_text(inputs)
    uses_negative = options.get("neg", options.get("negative", False))
    negative = packed_text(inputs, "negative_") if uses_negative else None
    leaked = [leaked_bits(inputs, index) for index in range(options.get("gt_leak", 0))]
    greedy = is_greedy(options, expected)
    with Probe(model, TextConditioning(features, negative, source=source)) as probe:
        result = generate(
            model,
            probe.conditioning,
            schedule,
            settings_of(options, greedy),
            noise=None if greedy else noise_of(options, expected, len(schedule)),
            known=leaked,
            monitor=probe,
            attention=attention_with_rounded_text if options.get("ca_bf16") else sdpa,
        )
    measured = probe.seen
    quantizer = model.quantizer()
    for scale in schedule:
        place = f"scale{scale.index:02d}."
        measured[f"{place}bits_vae"] = quantizer.to_latent(measured[f"{place}bits"], scale).movedim(1, -1)
        # With hidden-state guidance alone the official code computes the conditional rows only.
        if f"{place}logits_raw" in expected:
            measured[f"{place}logits_raw"] = measured[f"{place}logits_raw"][
                : len(expected[f"{place}logits_raw"])
            ]
    measured["summed_codes"] = result.f_hat
    if tokenizer is not None:
        measured["image_float"] = decoded(tokenizer, result.f_hat, expected.get("image_float"))
        measured["image_uint8_bgr_nhwc"] = image_bytes_bgr(measured["image_float"])
    return measured


@torch.inference_mode()
def decoded(tokenizer: BSQTokenizer, f_hat: Tensor, expected: Tensor | None) -> Tensor:
    """The image of a latent, from the order of summation that comes nearest to the stored one.

    Official codes reach the decoder channels last, where PyTorch's float32 GroupNorm on the CPU is less
    exact: at 512x512 it is 1e-3 away from float64 with one thread and 2e-4 with two, the plain layout 1e-5.
    Which of them a folder was made with is not stored.
    """
    images = [tokenizer.decode(f_hat)]
    if expected is None or images[0].shape != expected.shape:
        return images[0]
    channels_last, threads = f_hat.contiguous(memory_format=torch.channels_last), torch.get_num_threads()
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            images.append(tokenizer.decode(channels_last).contiguous())
    finally:
        torch.set_num_threads(threads)
    return min(images, key=lambda image: (image - expected).abs().max().item())


# -------------------------------------------------------------------------------------------- one-pass runs


def _compare_teacher_forced(folder: Path, config: dict, inputs: dict[str, Tensor], report: Report) -> None:
    model = load_transformer(config, stored(folder, "transformer"))
    expected, schedule, quantizer = stored(folder, "outputs"), schedule_of(config), model.quantizer()
    bits, _ = quantizer.encode(inputs["raw_features"], schedule)
    teacher = quantizer.teacher_inputs(bits, schedule)
    with Probe(model, TextConditioning(packed_text(inputs)), scales=False) as probe, torch.inference_mode():
        logits = teacher_forced(model, probe.conditioning, teacher, schedule)
    targets = [quantizer.to_tokens(level) for level in bits]
    measured = {
        **probe.seen,
        "x_BLC_wo_prefix": teacher,
        "logits": logits,
        "per_bit_cross_entropy": cross_entropy(logits, targets),
        **{f"scale{index:02d}.target_bits": level for index, level in enumerate(targets)},
    }
    compare_all(report, "teacher forced", measured, expected, tolerance_of)


def cross_entropy(logits: Tensor, targets: list[Tensor]) -> Tensor:
    """Of every bit (B, L, bits), from logits of pairs and the bits of all scales."""
    pairs = logits.unflatten(-1, (-1, 2)).movedim(-1, 1)
    return F.cross_entropy(pairs, torch.cat(targets, 1).long(), reduction="none")


def _compare_tokenizer(folder: Path, config: dict, inputs: dict[str, Tensor], report: Report) -> None:
    tokenizer, expected = load_tokenizer(config, stored(folder, "vae")), stored(folder, "outputs")
    latent_grids = ScaleSchedule.of(config["vae_scale_schedule"])
    schedule = ScaleSchedule.of(config.get("token_scale_schedule", config["vae_scale_schedule"]))
    quantizer = tokenizer.quantizer(latent_grids.final.height // schedule.final.height)
    with torch.inference_mode():
        features = tokenizer.encode(inputs["image"])
        bits, f_hat = quantizer.encode(features, schedule)
        summed = quantizer.accumulate(bits, schedule)
        measured = {
            "encoder_out": features,
            "quantized_sum": f_hat,
            "summed_codes_from_bits": summed,
            "teacher_input": quantizer.teacher_inputs(bits, schedule),
            "image_recon_from_z": decoded(tokenizer, f_hat, expected.get("image_recon_from_z")),
            "image_recon_from_bits": decoded(tokenizer, summed, expected.get("image_recon_from_bits")),
        }
        measured["image_uint8_bgr_nhwc"] = image_bytes_bgr(measured["image_recon_from_bits"])
        measured.update(_area_inputs(quantizer, bits, schedule))
    for index, level in enumerate(bits):
        measured[f"scale{index:02d}.bits"] = level.movedim(1, -1)
        measured[f"scale{index:02d}.bits_tokens"] = quantizer.to_tokens(level)
    compare_all(report, "tokenizer", measured, expected, tolerance_of)


def _area_inputs(
    quantizer: BitwiseQuantizer, bits: list[Tensor], schedule: ScaleSchedule
) -> dict[str, Tensor]:
    """The accumulated latent area-resampled to each next grid, which the tokenizer's own forward returns."""
    f_hat, inputs = quantizer.empty(len(bits[0]), schedule, bits[0].device), {}
    for level, scale, following in zip(bits, schedule, schedule.scales[1:], strict=False):
        f_hat = quantizer.add(f_hat, quantizer.codes(level), schedule, scale)
        grid = quantizer.latent_grid(following)
        inputs[f"scale{following.index:02d}.area_input"] = F.interpolate(f_hat, size=grid, mode="area")
    return inputs


# ------------------------------------------------------------------------------------------- rotary tables


def _compare_rotary(folder: Path, config: dict, report: Report) -> None:
    table = infinity_aspect_table()
    positions = folder / "positions.json"
    if positions.is_file():
        _compare_positions(json.loads(positions.read_text(encoding="utf-8")), report)
    base, left = config.get("base", 10000.0), []
    tables = stored(folder, "tables", required=False)
    for name, expected in tables.items():
        parts = name.split(".first")
        if len(parts) != 2 or not name.startswith("hd"):
            left += [] if name.startswith("apply.") else [name]
            continue
        head_dim, ratio = parts[0].removeprefix("hd").split(".hdivw")
        schedule = table.schedule(float(ratio), "1M").prefix(int(parts[1]))
        angles = torch.cat([rotary_angles(schedule, scale, int(head_dim), base) for scale in schedule], dim=1)
        report.compare("rotary", name, [("", _thin(angles, expected.shape[1]), expected)], LATENT)
    if "apply.q_in" in tables:
        options = config["apply"]
        schedule = ScaleSchedule.of(options["schedule"], table.grids[options["h_div_w"]][-1])
        angles = rotary_angles(schedule, schedule[options["scale_index"]], options["head_dim"], base)
        for part in ("q", "k"):
            turned = rotate(tables[f"apply.{part}_in"].transpose(1, 2), angles).transpose(1, 2)
            report.compare("rotary", f"apply.{part}_out", [("", turned, tables[f"apply.{part}_out"])], LATENT)
    report.not_compared("rotary", left)


def _thin(angles: Tensor, kept: int) -> Tensor:
    """Every n-th token so that ``kept`` remain; the fixtures keep every seventh where they thin at all."""
    total = angles.shape[1]
    steps = (1, 7, *range(2, total + 1))
    return angles[:, :: next((step for step in steps if math.ceil(total / step) == kept), 1)]


def _compare_positions(stored: dict, report: Report) -> None:
    table = infinity_aspect_table()
    for ratio, scales in stored.items():
        schedule = ScaleSchedule.of(
            [(entry["h"], entry["w"]) for entry in scales], table.grids[float(ratio)][-1]
        )
        pairs = []
        for scale, entry in zip(schedule, scales, strict=True):
            for axis, measured in zip(
                ("rows", "cols"), rotary_coordinates(scale, schedule.reference), strict=True
            ):
                pairs.append(
                    (f"scale{scale.index:02d} {axis}", torch.tensor(measured), torch.tensor(entry[axis]))
                )
        report.compare("rotary", f"coordinates {ratio}", pairs, 0.0)
        official = torch.tensor(table.grids[float(ratio)][: len(schedule)])
        report.compare("rotary", f"schedule {ratio}", [("", official, torch.tensor(schedule.grids))], 0.0)
