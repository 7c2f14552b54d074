"""Parity of VARestorer: one pass from stored features, of the published form and of the merged one."""

from pathlib import Path

import torch
from torch import Tensor

from stagevar_core.checkpoints import build, prepare, read
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.contract import Noise
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.restoring import RestoringLayout, restoring_inputs
from stagevar_core.network.attention import sdpa
from stagevar_core.network.rotary import rotary_coordinates
from stagevar_core.sampling.restoring import Restorer
from stagevar_core.schedule import ScaleSchedule, infinity_aspect_table
from tests.support.replay import ReplayedNoise

from . import infinity
from .infinity_probe import Probe
from .infinity_setup import check_released, load_tokenizer
from .report import Report, UnreadableFolder, compare_all, image_bytes_bgr

FORMS = {"published": "transformer", "merged": "transformer_merged"}
TOLERANCES = {**infinity.TOLERANCES, "source_bits": 0.0, "source_features": 5e-5}


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is VARestorer's, whose weights would load as Infinity's, too."""
    return config.get("task") == "restore"


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    check_released(config)
    inputs, layout = infinity.stored(folder, "inputs"), _layout(config)
    _compare_positions(infinity.stored(folder, "positions", required=False), layout, report)
    tokenizer = load_tokenizer(config, infinity.stored(folder, "vae"))
    with torch.inference_mode():
        image = inputs["source_image_uint8_rgb_nhwc"].float().movedim(-1, 1) / 255.0
        encoded = {"source_features": tokenizer.encode(image * 2.0 - 1.0)}
    compare_all(report, "encoder", encoded, {"source_features": inputs["source_features"]}, _tolerance)
    present = {form: name for form, name in FORMS.items() if (folder / f"{name}.safetensors").is_file()}
    if not present:
        raise UnreadableFolder("transformer.safetensors is missing")
    for form, name in present.items():
        checkpoint = prepare(*read(folder / f"{name}.safetensors"), kind="transformer")
        if form == "published" and not checkpoint.config.restores:
            report.missing(form, "task", "the file is taken for one that makes pictures")
        model = build(checkpoint)
        for run, options in config["runs"].items():
            expected = infinity.stored(folder, f"outputs_{run}")
            measured = _restore(model, layout, inputs, _noise(layout, options, expected))
            image = infinity.decoded(tokenizer, measured["summed_codes"], expected.get("image_float"))
            measured |= {"image_float": image, "image_uint8_bgr_nhwc": image_bytes_bgr(image)}
            measured = {name: _thin(name, tensor, config) for name, tensor in measured.items()}
            drawn = [name for name in expected if name.endswith(".uniform_noise")]
            stored = {name: tensor for name, tensor in expected.items() if name not in drawn}
            compare_all(report, f"{form} {run}", measured, stored, _tolerance)


def _layout(config: dict) -> RestoringLayout:
    schedule = ScaleSchedule.of(config["scale_schedule"])
    full = infinity_aspect_table().grids[float(config.get("h_div_w", 1.0))]
    if full[: len(schedule)] != schedule.grids:
        raise UnreadableFolder(f"its scales {schedule.grids} are not those of a known aspect ratio")
    return RestoringLayout(ScaleSchedule(full, full[-1]), len(schedule))


def _tolerance(quantity: str) -> float:
    return TOLERANCES.get(quantity, infinity.LOGITS)


def _noise(layout: RestoringLayout, options: dict, expected: dict[str, Tensor]) -> Noise | None:
    """Unit exponentials of the uniform draws that a run stores, else of those of its seed; None is greedy."""
    draws = [expected.get(f"scale{scale.index:02d}.uniform_noise") for scale in layout.schedule]
    stored = [draw for draw in draws if draw is not None]
    if "argmax" in options.get("selection", ""):
        return None
    if len(stored) < len(draws) and "seed" in options:
        generator, bits = torch.Generator().manual_seed(options["seed"]), expected["scale00.bits"].shape[-1]
        shapes = [(1, scale.tokens, bits, 2) for scale in layout.schedule]
        stored = [torch.rand(shape, generator=generator) for shape in shapes]
    return ReplayedNoise([-draw.log() for draw in stored]) if stored else None


def _restore(
    model: torch.nn.Module, layout: RestoringLayout, inputs: dict[str, Tensor], noise: Noise | None
) -> dict[str, Tensor]:
    """One run from the stored features; everything measured, under the names of the fixtures."""
    assert isinstance(model, Infinity)
    schedule, quantizer, features = layout.schedule, model.quantizer(), inputs["source_features"]
    lengths = inputs["cu_seqlens"].diff().tolist()
    conditioning = TextConditioning(inputs["text_features"].split(lengths))
    seen = []

    def record(module: object, arguments: tuple, output: Tensor) -> None:
        seen.append(output)

    handle = model.head.register_forward_hook(record)
    with Probe(model, conditioning, scales=False) as probe:
        restorer = Restorer(model, layout, quantizer, conditioning, attention=sdpa)
        latents = [quantizer.to_tokens(bits) for bits in quantizer.encode(features, schedule)[0]]
        restored = restorer(features, noise)
    handle.remove()
    measured = {**probe.seen, "summed_codes": restored.f_hat}
    measured["x_BLC_wo_prefix"] = restoring_inputs(quantizer, features, schedule)
    parts = seen[0].split([scale.tokens for scale in schedule], dim=1)
    for scale, part, source in zip(schedule, parts, latents, strict=True):
        place = f"scale{scale.index:02d}."
        measured |= {f"{place}logits_raw": part, f"{place}source_bits": source}
        measured[f"{place}bits"] = quantizer.to_tokens(restored.codes[scale.index])
    return measured


def _thin(name: str, tensor: Tensor, config: dict) -> Tensor:
    """Every n-th token where the folder keeps no more."""
    strides = config.get("token_stride", {})
    place, _, quantity = name.rpartition(".")
    if place and f"scaleNN.{quantity}" in strides:
        return tensor[:, :: strides[f"scaleNN.{quantity}"][int(place.removeprefix("scale"))]]
    whole = name in ("x_BLC_wo_prefix", "block_in") or (name.startswith("block") and name.endswith("_out"))
    return tensor[:, :: strides.get("sequence", 1)] if whole else tensor


def _compare_positions(stored: dict[str, Tensor], layout: RestoringLayout, report: Report) -> None:
    """Rows and columns of every token; those of the complete sum are of the scale that would follow."""
    pairs = []
    for name, expected in sorted(stored.items()):
        index = layout.count if name == "extra_group" else int(name.removeprefix("scale"))
        rows, columns = rotary_coordinates(layout.full[index], layout.full.reference)
        measured = torch.cartesian_prod(torch.tensor(rows), torch.tensor(columns))[: len(expected)]
        pairs.append((name, measured, expected))
    if pairs:
        report.compare("positions", "coordinates", pairs, 0.0)
