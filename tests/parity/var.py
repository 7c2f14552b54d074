"""Parity of VAR: generation, smooth mode, editing, teacher forcing and tokenizer against stored outputs."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stagevar_core.autoencoders.vq import PHI_SHARE, VQTokenizer, VQTokenizerConfig
from stagevar_core.checkpoints import Checkpoint, build, prepare
from stagevar_core.checkpoints.convert import convert
from stagevar_core.checkpoints.families_var import VQ_KEYS
from stagevar_core.conditioning.types import ClassConditioning
from stagevar_core.models.contract import Drawing, Drawn, Head
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.models.var import VAR
from stagevar_core.sampling.editing import scale_masks
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule
from tests.support.editing import rectangle, source_codes

from .heads import WatchedHead
from .infinity import OneStreamNoise
from .report import Report, UnreadableFolder, UnreleasedOption, compare_all

LOGITS, LATENT, IMAGE = 2e-4, 1e-4, 5e-4
# A temperature of 0.005 amplifies rounding two hundred times; the fixtures' own bound for these runs.
SMOOTH = 5e-3
TOLERANCES = {
    **dict.fromkeys(("idx", "edit_mask"), 0.0),
    **dict.fromkeys(("f_hat", "f_hat_last", "f", "encoder_out", "post_quant", "var_input", "h"), LATENT),
    **dict.fromkeys(("image", "image_pm1", "decoder_raw"), IMAGE),
}
RELEASED_TOKENIZER = {"quant_resi": PHI_SHARE, "quant_conv_ks": 3, "using_znorm": False}
# Our names of the entries of config.json that VAR and STAR both have.
NAMES = {"depth": "depth", "embed_dim": "width", "num_heads": "heads", "vocab_size": "vocab", "Cvae": "dim"}


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is VAR's: its transformer or a part of its tokenizer."""
    return config.get("model") in ("var", "var-vqvae")


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    if config["model"] == "var-vqvae":
        for name, options in config["cases"].items():
            _compare_tokenizer(folder, config, name, options, report)
        return
    tokenizer, model = load_tokenizer(folder, config["vae"]), load_transformer(folder, config)
    schedule = schedule_of(config)
    stored = read(folder, "edit_source", required=False)
    if "image_u8" in stored:
        measured = _tokens(source_codes(tokenizer, _pixels(stored.pop("image_u8")), schedule))
        compare_all(report, "edit source", measured, stored, _tolerance)
    for name, options in config["runs"].items():
        expected = read(folder, f"run_{name}")
        measured = _generate(folder, model, tokenizer, schedule, options)
        if "image" in expected and not decodes(tokenizer):
            report.missing(name, "image", "an image is stored, but the tokenizer has no decoder")
        if not options["cfg"]:  # the official code runs the other rows all the same, and adds none of them
            count = len(options["labels"])
            rows = {key for key in expected if key.endswith("logits_pre") or "dbg" in key}
            expected |= {key: expected[key][:count] for key in rows}
        bound = SMOOTH if options.get("smooth") else 0.0
        compare_all(report, name, measured, expected, lambda q, b=bound: _tolerance(q, b))
    if config.get("teacher_forced"):
        _compare_teacher_forced(folder, model, tokenizer, schedule, report)


def read(folder: Path, name: str, *, required: bool = True) -> dict[str, Tensor]:
    """The tensors of a file; those of a scale, ``X.3``, under the report's names, ``scale03.X``."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        if required:
            raise UnreadableFolder(f"{path.name} is missing")
        return {}
    return {re.sub(r"^(.*)\.(\d+)$", _place, key): value for key, value in load_file(path).items()}


def _place(match: re.Match) -> str:
    return f"scale{int(match[2]):02d}.{match[1]}"


def schedule_of(config: dict) -> ScaleSchedule:
    """The schedule of a folder or of a case."""
    return ScaleSchedule.of([(side, side) for side in config["patch_nums"]])


def _tolerance(quantity: str, least: float = 0.0) -> float:
    tolerance = TOLERANCES.get(quantity, LOGITS)
    return max(tolerance, least) if tolerance else 0.0


def _tokens(ids: list[Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {f"scale{index:02d}.{prefix}idx": level.flatten(1) for index, level in enumerate(ids)}


def _pixels(image: Tensor) -> Tensor:
    """Bytes to [-1, 1]."""
    return image.float() / 255.0 * 2.0 - 1.0


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder in float32; whole numbers keep their type."""
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise UnreadableFolder(f"{path} is missing")
    return {
        key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()
    }


def load_transformer(folder: Path, config: dict) -> VAR:
    """The transformer of a folder in float32, recognised from its tensors and compared with its config."""
    names = {
        "num_classes": "classes",
        "patch_nums": "sides",
        "shared_aln": "shared",
        "attn_l2_norm": "cosine",
    }
    return build(detected(folder, config, **names))


def detected(folder: Path, config: dict, **names: str) -> Checkpoint:
    """The transformer of a folder before it is built.

    ``names``: our names of the entries of config.json that one family alone has.
    """
    checkpoint = prepare(weights(folder), None, folder.name, kind="transformer")
    found = {key: getattr(checkpoint.config, name) for key, name in {**NAMES, **names}.items()}
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
    if wrong := {key: value for key, value in found.items() if config.get(key, value) != value}:
        raise UnreadableFolder(f"detected {wrong}, but config.json says otherwise")
    return checkpoint


def load_tokenizer(folder: Path, names: str) -> VQTokenizer:
    """The tokenizer that a folder names, one folder or parts of it in several, "../encoder + ../decoder"."""
    folders, tensors = [folder / part.strip() for part in names.split("+")], {}
    for part in folders:
        tensors |= weights(part)
    if {"encoder", "decoder"} <= {key.partition(".")[0] for key in tensors}:
        return build(prepare(tensors, None, names, kind="tokenizer"))
    return load_part(json.loads((folders[0] / "config.json").read_text(encoding="utf-8")), tensors)


def load_part_as(kind: type[VQTokenizer], folder: Path, tensors: dict[str, Tensor]) -> VQTokenizer:
    """:func:`load_part` of the settings in a folder, as another class of tokenizer."""
    return load_part(json.loads((folder / "config.json").read_text(encoding="utf-8")), tensors, kind)


def load_part(config: dict, tensors: dict[str, Tensor], kind: type[VQTokenizer] = VQTokenizer) -> VQTokenizer:
    """A tokenizer of which only some parts are there, each of them complete; the others have no storage."""
    found = {key: config[key] for key, usual in RELEASED_TOKENIZER.items() if config.get(key, usual) != usual}
    if found:
        raise UnreleasedOption(", ".join(f"{key} {value}" for key, value in found.items()))
    tensors = convert(tensors, VQ_KEYS).tensors
    codebook = tensors.get("quantize.codebook")
    shape = VQTokenizerConfig(
        vocab=config["vocab_size"] if codebook is None else len(codebook),
        dim=config["z_channels"],
        width=config["ch"],
        multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        phis=sum(key.startswith("quantize.phi.") and key.endswith("weight") for key in tensors),
    )
    tokenizer = kind(shape, device="meta")
    parts = {key.partition(".")[0] for key in tensors}
    wanted = {key for key in tokenizer.state_dict() if key.partition(".")[0] in parts}
    if wanted != set(tensors):
        raise UnreadableFolder(f"not the tensors of a tokenizer: {sorted(wanted ^ set(tensors))[:4]}")
    tokenizer.load_state_dict(tensors, strict=False, assign=True)
    return tokenizer.eval()


def decodes(tokenizer: VQTokenizer) -> bool:
    """Whether the decoder is there."""
    return not tokenizer.decoder.conv_in.weight.is_meta


# ---------------------------------------------------------------------------------------------- generation


class Probe(Monitor):
    """Collects tensors in ``seen`` under the names of the fixtures while it is open."""

    def __init__(self, model: VAR, tokenizer: VQTokenizer) -> None:
        self.model, self.quantizer = model, tokenizer.quantizer()
        self.seen: dict[str, Tensor] = {}
        self._handles: list = []
        self._place = ""

    def __enter__(self) -> "Probe":
        for block in self.model.blocks:
            self._handles.append(block.register_forward_pre_hook(self._block_in))
            self._handles.append(block.register_forward_hook(self._block_out))
        self._originals = self.quantizer.mixture, self.quantizer.add
        self.quantizer.mixture, self.quantizer.add = self._mixture, self._add
        make = self.model.drawing_head
        self.model.drawing_head = lambda refine: self.watched(make(refine))
        return self

    def watched(self, head: Head) -> Head:
        """The head of the run with its draws written down."""
        return WatchedHead(head, self._drawn)

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        del self.model.drawing_head, self.quantizer.mixture, self.quantizer.add

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        self.seen[f"{self._place}logits_pre"], self.seen[f"{self._place}logits_post"] = raw, guided

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        self.seen[f"{self._place}f_hat"] = f_hat

    def _block_in(self, module: object, arguments: tuple) -> None:
        x, ctx, layer = arguments
        if layer == 0:
            self._place = f"scale{ctx.scale.index:02d}."
            self.seen[f"{self._place}dbg.x_in"] = x

    def _block_out(self, module: object, arguments: tuple, output: Tensor) -> None:
        self.seen[f"{self._place}dbg.block{arguments[2]}"] = output

    def _drawn(self, drawing: Drawing, drawn: Drawn) -> None:
        self.seen[f"{self._place}idx"] = drawn.kept.flatten(1)

    def _mixture(self, shares: Tensor, scale: Scale) -> Tensor:
        self.seen[f"{self._place}smooth_prob"] = shares
        return self._originals[0](shares, scale)

    def _add(self, f_hat: Tensor, codes: Tensor, *where) -> Tensor:
        self.seen[f"{self._place}h"] = codes
        return self._originals[1](f_hat, codes, *where)


def labels_of(model: VAR, labels: list[int]) -> ClassConditioning:
    """Labels of a folder, where the number of classes stands for none."""
    return ClassConditioning(tuple(-1 if label == model.config.classes else label for label in labels))


def settings_of(options: dict) -> SamplingSettings:
    """The settings of a run; the official function draws also where top-k leaves one token."""
    return SamplingSettings(
        cfg_scale=options["cfg"],
        temperature=1.0,
        top_k=options["top_k"],
        top_p=options["top_p"],
        smooth=options.get("smooth", False),
    )


@torch.inference_mode()
def _generate(
    folder: Path, model: VAR, tokenizer: VQTokenizer, schedule: ScaleSchedule, options: dict
) -> dict[str, Tensor]:
    """One run; everything measured, under the names of the fixtures."""
    known, masks, measured = [], [], {}
    if edit := options.get("edit"):
        stored = read(folder, "edit_source")
        known = [stored[f"scale{scale.index:02d}.idx"].long().unflatten(1, scale.grid) for scale in schedule]
        box = (edit["y0"], edit["x0"], edit["y1"], edit["x1"])
        mask = rectangle(schedule.final.grid, *box, inside=not edit["inpainting"])
        masks, measured = scale_masks(mask, schedule), {"edit_mask": mask}
    with Probe(model, tokenizer) as probe:
        result = generate(
            model,
            labels_of(model, options["labels"]),
            schedule,
            settings_of(options),
            noise=OneStreamNoise(options.get("g_seed", options.get("seed"))),
            quantizer=tokenizer.quantizer(),
            monitor=probe,
            known=known,
            masks=masks,
        )
    if decodes(tokenizer):
        measured["image"] = (tokenizer.decode(result.f_hat) + 1.0) / 2.0
    return measured | probe.seen


@torch.inference_mode()
def _compare_teacher_forced(
    folder: Path, model: VAR, tokenizer: VQTokenizer, schedule: ScaleSchedule, report: Report
) -> None:
    stored = read(folder, "teacher_forced")
    ids = [stored.pop(f"scale{scale.index:02d}.idx").unflatten(1, scale.grid) for scale in schedule]
    labels = labels_of(model, stored.pop("labels").tolist())
    inputs = tokenizer.quantizer().teacher_inputs(ids, schedule)
    measured = {"var_input": inputs, "logits": teacher_forced(model, labels, inputs, schedule)}
    compare_all(report, "teacher forced", measured, stored, _tolerance)


# ----------------------------------------------------------------------------------------------- tokenizer


@torch.inference_mode()
def _compare_tokenizer(folder: Path, config: dict, case: str, options: dict, report: Report) -> None:
    tokenizer, schedule = load_part(config, weights(folder)), schedule_of(options)
    quantizer = tokenizer.quantizer()
    everything = read(folder, "tensors").items()
    stored = {key.replace(f"{case}.", "", 1): value for key, value in everything if case in key.split(".")}
    measured = {}
    if "image_u8" in stored:
        image = _pixels(stored.pop("image_u8"))
        measured |= {"encoder_out": tokenizer.encoder(image), "f": tokenizer.encode(image)}
        ids, measured["f_hat_last"] = quantizer.encode(measured["f"], schedule)
        measured |= _tokens(ids) | {"var_input": quantizer.teacher_inputs(ids, schedule)}
        f_hat = quantizer.empty(len(image), schedule, image.device)
        for level, scale in zip(ids, schedule, strict=True):
            f_hat = quantizer.add(f_hat, quantizer.codes(level), schedule, scale)
            measured[f"scale{scale.index:02d}.f_hat"] = f_hat
    else:
        ids = [stored.pop(f"scale{scale.index:02d}.idx").unflatten(1, scale.grid) for scale in schedule]
        measured["f_hat"] = quantizer.accumulate(ids, schedule)
    if "f_hat" in measured and decodes(tokenizer):
        measured["post_quant"] = tokenizer.post_quant_conv(measured["f_hat"])
        measured["decoder_raw"] = tokenizer.decoder(measured["post_quant"])
        measured["image_pm1"] = tokenizer.decode(measured["f_hat"])
    compare_all(report, f"tokenizer {case}", measured, stored, _tolerance)
