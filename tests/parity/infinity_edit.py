"""Parity of editing on Infinity (VAREdit): the same transformer behind the tokens of a picture."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagevar_core.autoencoders.bsq import BSQTokenizer
from stagevar_core.conditioning.picture import encoder_input, from_square, to_square
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.network.rotary import prefixed_angles, prefixed_coordinates, rotate
from stagevar_core.schedule import Prefix, Scale, ScaleSchedule, infinity_aspect_table

from .infinity import (
    BFLOAT16_LOGITS,
    LATENT,
    LOGITS,
    cross_entropy,
    defaults_of,
    generated,
    packed_text,
    schedule_of,
    stored,
    tolerance_of,
)
from .infinity_probe import Probe
from .infinity_setup import check_released, load_decoder, load_transformer
from .report import Report, UnreadableFolder, compare_all

COMPLETE = ("bits", "bits_vae", "exp_noise")  # of all tokens, whatever the rest is thinned to


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is of the editing task."""
    return config.get("task") == "edit"


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    check_released(config)
    inputs = stored(folder, "inputs", required=False)
    if "runs" in config:
        _compare_runs(folder, config, inputs, report)
    elif "raw_features" in inputs:
        _compare_training(folder, config, inputs, report)
    elif "pictures" in config:
        _compare_pictures(folder, config, inputs, report)
    elif (folder / "positions.safetensors").is_file() or (folder / "tables.safetensors").is_file():
        _compare_positions(folder, config, report)
    else:
        raise UnreadableFolder("it has neither runs, raw features, pictures nor rotary positions")


# ---------------------------------------------------------------------------------------------- generation


def _compare_runs(folder: Path, config: dict, inputs: dict[str, Tensor], report: Report) -> None:
    model = load_transformer(config, stored(folder, "transformer"))
    weights = stored(folder, "vae", required=False)
    tokenizer = load_decoder(config, weights) if weights else None
    source = _source(tokenizer, inputs, report)
    for name, options in config["runs"].items():
        options = {**defaults_of(config), **options}
        expected = stored(folder, f"outputs_{name}")
        measured = generated(model, tokenizer, config, inputs, options, expected, source)
        if "source.block_in" in measured:  # the same in both rows, stored once
            measured["source.block_in"] = measured["source.block_in"][:1]
        measured = {key: _thin(key, value, config) for key, value in measured.items()}
        for key in expected.keys() - measured.keys():
            if match := re.fullmatch(r"summed_codes_every(\d+)", key):
                step = int(match[1])
                measured[key] = measured["summed_codes"][:, :, ::step, ::step]
        compare_all(report, name, measured, expected, lambda q, o=options: _tolerance(q, o))


def _source(tokenizer: BSQTokenizer | None, inputs: dict[str, Tensor], report: Report) -> Tensor:
    """Features of the picture, one per prompt, as stored or made from its bytes; one may serve all."""
    features = inputs.get("source_features")
    if tokenizer is not None and "source_image_uint8_rgb_nhwc" in inputs:
        pictures = [encoder_input(each.numpy()) for each in inputs["source_image_uint8_rgb_nhwc"]]
        with torch.inference_mode():
            made = tokenizer.encode(torch.cat(pictures))
        if features is not None:
            report.compare("source", "source_features", [("", made, features)], LOGITS)
        features = made if features is None else features
    if features is None:
        raise UnreadableFolder("it stores neither features of the source nor a picture and its encoder")
    count = len(packed_text(inputs))
    return features.float()[:count].expand(count, -1, -1, -1)


def _thin(name: str, value: Tensor, config: dict) -> Tensor:
    """Every n-th token of what is stored so, as ``token_stride`` says."""
    place, _, quantity = name.partition(".")
    strides = config.get("token_stride", {})
    if place == "source":
        step = strides.get("source", 1)
    elif place.startswith("scale") and quantity not in COMPLETE:
        step = strides.get("scales", [1] * 99)[int(place.removeprefix("scale"))]
    else:
        return value
    return value[:, :, ::step] if quantity.endswith(("_k", "_v")) else value[:, ::step]


def _tolerance(quantity: str, options: dict) -> float:
    """Guided logits count the noise of the raw ones as guidance and temperature multiply it."""
    logits = BFLOAT16_LOGITS if options.get("ca_bf16") else LOGITS
    if quantity == "logits_post":
        pairs = [
            np.atleast_1d(np.asarray(options[key], dtype=float)) for key in ("cfg", "tau")
        ]  # one number, or one per scale
        factor = float(np.max((abs(pairs[0]) + abs(1.0 - pairs[0])) / pairs[1]))
        return logits * max(1.0, factor / 2)
    exact = quantity == "source.tokens" or quantity.startswith("summed_codes")
    if exact or quantity.endswith(("_k", "_v")):
        return LATENT
    return tolerance_of(quantity, logits)


# --------------------------------------------------------------------------------------- the training pass


def _compare_training(folder: Path, config: dict, inputs: dict[str, Tensor], report: Report) -> None:
    model = load_transformer(config, stored(folder, "transformer"))
    expected, schedule, quantizer = stored(folder, "outputs"), schedule_of(config), model.quantizer()
    bits, _ = quantizer.encode(inputs["raw_features"].float(), schedule)
    teacher, source = quantizer.teacher_inputs(bits, schedule), inputs["source_features"].float()
    conditioning = TextConditioning(packed_text(inputs), source=source)
    with Probe(model, conditioning, scales=False) as probe, torch.inference_mode():
        logits = teacher_forced(model, probe.conditioning, teacher, schedule)
    targets = [quantizer.to_tokens(level) for level in bits]
    measured = {
        **probe.seen,
        "source_tokens": quantizer.to_tokens(source),
        "x_BLC_wo_prefix": teacher,
        "logits": logits,
        "per_bit_cross_entropy": cross_entropy(logits, targets),
        **{f"scale{index:02d}.target_bits": level for index, level in enumerate(targets)},
    }
    strides = config.get("token_stride", {})
    for name in measured:
        key = "blockNN_out" if name.startswith("block") and name.endswith("_out") else name
        measured[name] = measured[name][:, :: strides[key]] if key in strides else measured[name]
    compare_all(report, "teacher forced", measured, expected, lambda q: tolerance_of(q))


# ------------------------------------------------------------------------------------- pictures, positions


def _compare_pictures(folder: Path, config: dict, inputs: dict[str, Tensor], report: Report) -> None:
    expected, measured = stored(folder, "outputs"), {}
    for index, picture in enumerate(config["pictures"]):
        name, side = f"picture{index}.", picture["working_size"]
        square = to_square(inputs[f"{name}source_uint8_rgb_hwc"].numpy(), side)
        edited = inputs[f"{name}edited_uint8_rgb_hwc"].numpy()
        result = from_square(edited, (picture["height"], picture["width"]))
        measured[f"{name}resized_uint8_rgb_hwc"] = torch.from_numpy(np.array(square))
        measured[f"{name}model_input"] = encoder_input(square)
        measured[f"{name}result_uint8_rgb_hwc"] = torch.from_numpy(np.array(result))
    compare_all(report, "pictures", measured, expected, lambda q: 0.0)


def _behind(grids: list) -> tuple[ScaleSchedule, Prefix]:
    """A square schedule and the picture that precedes it."""
    full = infinity_aspect_table().grids[1.0]
    schedule = ScaleSchedule.of(grids, full[-1])
    final = schedule.final
    return schedule, Prefix(final.index, *final.grid)


def _compare_positions(folder: Path, config: dict, report: Report) -> None:
    expected = stored(folder, "positions", required=False)
    for size, entry in config["sizes"].items():
        schedule, prefix = _behind(entry["schedule"])
        places: list[tuple[str, Scale]] = [("source", prefix)]
        places += [(f"scale{scale.index:02d}", scale) for scale in schedule]
        pairs = [
            (name, prefixed_coordinates(schedule, scale, prefix), expected.pop(f"{size}.{name}"))
            for name, scale in places
            if f"{size}.{name}" in expected
        ]
        report.compare("positions", size, pairs, 0.0)
    tables, base = stored(folder, "tables", required=False), config.get("base", 10000.0)
    left = [*expected]
    for name, table in tables.items():
        if name.endswith(".table"):
            head_dim = int(name.split(".")[0].removeprefix("hd"))
            report.compare("positions", name, [("", _table(head_dim, config, base), table)], LATENT)
        elif not name.startswith("apply."):
            left.append(name)
    if "apply.q_in" in tables:
        options = config["apply"]
        schedule, prefix = _behind(options["schedule"])
        scale = prefix if options.get("source") else schedule[options["scale_index"]]
        angles = prefixed_angles(schedule, scale, prefix, options["head_dim"], base)
        for part in ("q", "k"):
            turned = rotate(tables[f"apply.{part}_in"].transpose(1, 2), angles).transpose(1, 2)
            report.compare("positions", f"{part}_out", [("", turned, tables[f"apply.{part}_out"])], LATENT)
    report.not_compared("positions", left)


def _table(head_dim: int, config: dict, base: float) -> Tensor:
    """Every n-th entry of the whole table, which the largest size reads in order; zeros pad its end."""
    schedule, prefix = _behind(list(infinity_aspect_table().grids[1.0]))
    parts = [prefixed_angles(schedule, each, prefix, head_dim, base) for each in (prefix, *schedule)]
    whole = torch.cat(parts, dim=1)
    padding = torch.zeros(2, config["table_entries_with_padding"] - whole.shape[1], whole.shape[2])
    return torch.cat((whole, padding), dim=1)[:, :: config["table_stride"]]
