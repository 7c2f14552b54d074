"""ComfyUI conditioning to what the core takes: text features or class labels, one per image."""

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...stagevar_core.conditioning.changing import ChangingConditioning, RunConditioning
from ...stagevar_core.conditioning.labels import class_index
from ...stagevar_core.conditioning.regions import Region, Regions
from ...stagevar_core.conditioning.types import ClassConditioning, Conditioning, TextConditioning
from ...stagevar_core.models.contract import Transformer
from .steering import Frame, held, holding, masks_of, number_of

_LOG = logging.getLogger(__name__)
# Entries of a conditioning's dictionary.
NULL_TEXT = "stagevar_null_text"  # features of the empty prompt (1, tokens, width)
CLASS_LABEL = "stagevar_class_label"  # the number of a class, -1 for none
CLASSES = "stagevar_classes"  # how many there are of the kind that was chosen from; None: any number
PADDING = "stagevar_padding"  # tokens at the end of the features that are padding and are read as well
LENGTH = "stagevar_length"  # tokens of the prompt before the text encoder cut it
# What nodes of the host leave beside features to steer its own samplers, by the words of their titles.
_STEERING = {
    "area": "Set Area",
    "mask": "Set Mask",
    "strength": "the strength of an area",
    "mask_strength": "the strength of a mask",
    "start_percent": "Set Timestep Range",
    "end_percent": "Set Timestep Range",
    "control": "ControlNet",
    "hooks": "hooks",
    "gligen": "GLIGEN",
    "unclip_conditioning": "unCLIP",
    "clip_vision_output": "a CLIP vision output",
    "style_model": "a style model",
    "concat_latent_image": "the picture of an inpainting conditioning",
    "concat_image": "the picture of an inpainting conditioning",
    "reference_latents": "reference latents",
    "guidance": "a guidance value",
}
# By family and channels of the features.
_ENCODERS = {
    ("t5", 2048): "Flan-T5-XL",
    ("clip", 1024): "the text encoder of Stable Diffusion 2.1",
    ("clip pair", 2048): "CLIP-L and CLIP-bigG, two files,",
    ("qwen2", 1536): "the Qwen2 of HART",
}
_WHERE = ("area", "mask")
_STRENGTHS = ("strength", "mask_strength")
_WHEN = ("start_percent", "end_percent")
_NEUTRAL = {"strength": 1.0, "mask_strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
# Of core nodes: pairs of features (prompts, tokens, width) and a dictionary of what else is known.
HostConditioning = Sequence[Sequence[Any]]
# Of its text encoders with masks: features (1, tokens, width), pooled (1, width), what else is known.
Encoded = tuple[Tensor, Tensor, dict[str, Any]]


class Cut(list):
    """The tokens that an encoder reads of a prompt; ``length``: of the whole prompt."""

    def __init__(self, read: Sequence[Any], length: int) -> None:
        super().__init__(read)
        self.length = length


def length_of(chunks: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What of it travels with the features; nothing where a node has made tokens of its own."""
    lengths = [chunk.length for chunk in chunks if isinstance(chunk, Cut)]
    return {LENGTH: max(lengths)} if lengths else {}


class Entry(NamedTuple):
    """The conditioning that is used of an input of the sampler. ``field``: the input's name."""

    field: str
    features: Tensor
    extra: dict[str, Any]


class Prompted(NamedTuple):
    """What a run is conditioned on, and what of its inputs is left out, for the node."""

    conditioning: Conditioning
    notes: tuple[str, ...]


class Scheduled(NamedTuple):
    """The same where it may change from scale to scale."""

    conditioning: RunConditioning
    notes: tuple[str, ...]


def conditioning_of(
    network: Transformer, positive: HostConditioning, negative: HostConditioning | None, batch: int
) -> Prompted:
    """What ``batch`` images of a transformer are conditioned on; raises ``ValueError`` where it is the other.

    Without ``negative`` the model's own null text or class takes its place, or the encoded empty prompt where
    it learned none. Of combined conditionings the first one is used, wherever and whenever it holds.
    """
    notes: list[str] = []
    entries = {field: [_entry(field, given, notes)] for field, given in _given(positive, negative)}
    conditioning = _part(network, entries["positive"], entries.get("negative", []), batch, notes)
    return Prompted(conditioning, _said(notes))


def scheduled_of(
    network: Transformer,
    positive: HostConditioning,
    negative: HostConditioning | None,
    batch: int,
    frame: Frame,
) -> Scheduled:
    """The same with all combined conditionings: each where and at the scales where core nodes say it holds.

    Classes hold for the whole picture, and one at a time. A scale without a prompt takes the nearest one, a
    scale without a negative one the model's own null text or class.
    """
    notes: list[str] = []
    classes = network.classes is not None
    followed = (*_WHEN, *(() if classes else (*_WHERE, *_STRENGTHS)))
    entries: dict[str, list[Entry]] = {}
    turns: dict[str, list[tuple[int, ...]]] = {"negative": [()] * len(frame.schedule)}
    for field, given in _given(positive, negative):
        entries[field] = _entries(field, given, followed, notes)
        turns[field] = holding([entry.extra for entry in entries[field]], frame.schedule)
    missing = sum(not which for which in turns["positive"])
    if missing:
        notes.append(
            f"positive: no prompt holds at {missing} of {len(frame.schedule)} scales; the nearest one does "
            "there. Ranges are shares of the final area"
        )
        turns["positive"] = held(turns["positive"])
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Conditioning] = {}
    for turn in zip(turns["positive"], turns["negative"], strict=True):
        if turn not in known:
            asked = [entries["positive"][index] for index in turn[0]]
            against = [entries["negative"][index] for index in turn[1]]
            known[turn] = _part(network, asked, against, batch, notes, frame)
    holds = [known[turn] for turn in zip(turns["positive"], turns["negative"], strict=True)]
    return Scheduled(ChangingConditioning.of(holds), _said(notes))


def _given(
    positive: HostConditioning, negative: HostConditioning | None
) -> list[tuple[str, HostConditioning]]:
    """The inputs that are connected, by name."""
    return [("positive", positive), *([] if negative is None else [("negative", negative)])]


def _said(notes: list[str]) -> tuple[str, ...]:
    """Every note once, in the log as well."""
    said = tuple(dict.fromkeys(notes))
    for note in said:
        _LOG.warning("StageVAR: %s", note)
    return said


def _part(
    network: Transformer,
    positive: list[Entry],
    negative: list[Entry],
    batch: int,
    notes: list[str],
    frame: Frame | None = None,
) -> Conditioning:
    """What images are conditioned on where these hold at once."""
    if network.classes is None:
        return _texts(network, positive, negative, batch, notes, frame)
    return _classes(network.family, network.classes, positive, negative, batch, notes)


def _entry(field: str, conditioning: HostConditioning, notes: list[str]) -> Entry:
    """The first conditioning of an input."""
    first, *others = _entries(field, conditioning, (), notes)
    if others:
        notes.insert(
            0,
            f"{field} holds {len(conditioning)} conditionings; the first one is used, combined or scheduled "
            "ones are not",
        )
    return first


def _entries(
    field: str, conditioning: HostConditioning, followed: Sequence[str], notes: list[str]
) -> list[Entry]:
    """All conditionings of an input; notes what none of the keys ``followed`` covers."""
    if not conditioning:
        raise ValueError(f"{field}: the conditioning is empty; connect CLIP Text Encode or Class Label")
    several = len(conditioning) > 1
    steered = dict.fromkeys(
        words
        for _, extra in (each[:2] for each in conditioning)
        for key, words in _STEERING.items()
        if extra.get(key) is not None
        and not _neutral(key, extra[key])
        and (key not in followed or (key in _STRENGTHS and not several))
    )
    if steered:
        notes.append(f"{field}: {', '.join(steered)} ignored, which this model cannot follow")
    return [Entry(field, *each[:2]) for each in conditioning]


def _neutral(key: str, value: object) -> bool:
    """Whether it changes nothing, as the values that nodes leave beside what was meant."""
    return key in _NEUTRAL and value == _NEUTRAL[key]


def _classes(
    family: str,
    classes: int,
    positive: list[Entry],
    negative: list[Entry],
    batch: int,
    notes: list[str],
) -> ClassConditioning:
    labels = []
    for entries in (positive, negative):
        if len(entries) > 1:
            notes.append(
                f"{entries[0].field}: {len(entries)} classes hold at once; this model draws one, the first. "
                "Give each a range of its own with Set Timestep Range"
            )
        for field, _, extra in entries[:1]:
            if CLASS_LABEL not in extra:
                raise ValueError(
                    f"{field}: found a text; this {family.upper()} model is conditioned on a class. "
                    "Connect Class Label instead of CLIP Text Encode"
                )
            chosen = extra.get(CLASSES)
            if chosen not in (None, classes):
                raise ValueError(
                    f"{field}: found class {extra[CLASS_LABEL]} of {chosen}; this model has {classes} of its "
                    f"own, 0 to {classes - 1}. Choose one of them in Class Label: artwork stands before "
                    "those of the built-in model, and label takes a number"
                )
            try:
                labels.append((class_index(extra[CLASS_LABEL], classes),) * batch)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error
    return ClassConditioning(*labels)


def _texts(
    network: Transformer,
    positive: list[Entry],
    negative: list[Entry],
    batch: int,
    notes: list[str],
    frame: Frame | None,
) -> TextConditioning:
    for field, _, extra in (*positive, *negative):
        if CLASS_LABEL in extra:
            raise ValueError(
                f"{field}: found a class label; this {network.family} model is conditioned on text. Connect "
                "CLIP Text Encode instead of Class Label"
            )
    null = None if network.learned_null else _null_text(network, positive[0])
    features, regions = _placed(network, positive, batch, notes, frame)
    against, their_regions = _placed(network, negative, batch, notes, frame) if negative else (None, ())
    return TextConditioning(
        features,
        against,
        null,
        regions=regions,
        negative_regions=their_regions,
        padding=_padding(positive, batch),
        negative_padding=_padding(negative, batch),
    )


def _padding(entries: list[Entry], batch: int) -> tuple[int, ...]:
    """How much of the text of every image is padding that is read as well; empty where none is."""
    found = [entry.extra.get(PADDING) for entry in entries]
    if len(found) != 1 or not isinstance(found[0], int):
        return ()
    return (min(found[0], entries[0].features.shape[1]),) * batch


def _placed(
    network: Transformer, entries: list[Entry], batch: int, notes: list[str], frame: Frame | None
) -> tuple[tuple[Tensor, ...], tuple[Regions, ...]]:
    """The texts of ``batch`` images, and of which prompts they are made where each holds in a region.

    Without regions and others beside it, a prompt is the whole text.
    """
    prompts = [_prompts(network, entry, batch, notes) for entry in entries]
    if frame is None:
        return prompts[0], ()
    masks = [masks_of(entry.field, entry.extra, frame.size, batch) for entry in entries]
    if len(entries) == 1 and masks[0] is None:
        return prompts[0], ()
    strengths = [
        math.prod(max(0.0, number_of(entry.extra, key, 1.0)) for key in _STRENGTHS) for entry in entries
    ]
    field, limited = entries[0].field, [each for each in masks if each is not None]
    for number, each in enumerate(masks, start=1):
        if each is not None and not any(mask.any() for mask in each):
            notes.append(f"{field}: the area or mask of prompt {number} covers nothing of the picture")
    if len(limited) == len(masks) and _uncovered(limited):
        notes.append(
            f"{field}: no prompt holds in {_uncovered(limited):.0%} of the picture; all of them count there. "
            "Combine them with one for the whole picture"
        )
    rows = [
        tuple(
            Region(len(texts[index]), None if each is None else each[index], strength)
            for texts, each, strength in zip(prompts, masks, strengths, strict=True)
        )
        for index in range(batch)
    ]
    texts = tuple(torch.cat([texts[index] for texts in prompts]) for index in range(batch))
    return texts, tuple(rows)


def _uncovered(masks: Sequence[Sequence[Tensor]]) -> float:
    """The share of the first picture that no mask covers."""
    grid = (64, 64)
    each = torch.stack([F.interpolate(mask[0][None, None], size=grid, mode="area")[0, 0] for mask in masks])
    return float((each.sum(0) <= 0.0).float().mean())


def _null_text(network: Transformer, entry: Entry) -> Tensor:
    """The features of the empty prompt (tokens, width), which come with those of a prompt."""
    _check_width(network, entry)
    null = entry.extra.get(NULL_TEXT)
    if null is None or "attention_mask" not in entry.extra:
        raise ValueError(
            f"{entry.field}: the text features do not say where the text ends, which {network.family} models "
            f"have to know. Load {_encoder_of(network)} with Load StageVAR Text Encoder; ComfyUI's own "
            "loader leaves this out"
        )
    return null[0]


def _prompts(network: Transformer, entry: Entry, batch: int, notes: list[str]) -> tuple[Tensor, ...]:
    """One (tokens, width) tensor per image: the prompts in turn, as ComfyUI fills batches."""
    _check_width(network, entry)
    rows = _without_padding(entry.features, entry.extra)
    texts = [_trim(entry, row, network.longest_text, notes) for row in rows]
    if len(texts) > batch:
        notes.append(f"{entry.field} holds {len(texts)} prompts for {batch} images; the rest is ignored")
    return tuple(texts[index % len(texts)] for index in range(batch))


def _encoder_of(network: Transformer) -> str:
    """The text encoder that a model was trained with, in words."""
    wanted = (network.text_family or "", network.config.text_width)
    return _ENCODERS.get(wanted, "the built-in one")


def _check_width(network: Transformer, entry: Entry) -> None:
    width = network.config.text_width
    shape = tuple(getattr(entry.features, "shape", ()))  # other packs may hand on anything
    if len(shape) == 3 and shape[0] and shape[1] and shape[2] == width:
        return
    raise ValueError(
        f"{entry.field}: found text features of shape {shape}; this model expects (prompts, tokens, "
        f"{width}). Encode the prompt with the text encoder the model was trained with: "
        f"{_encoder_of(network)}, through Load StageVAR Text Encoder"
    )


def _without_padding(features: Tensor, extra: dict[str, Any]) -> list[Tensor]:
    """The rows (tokens, width) of each prompt that hold text.

    Nodes that join or mix features keep the mask of one of them. Our encoder of models that need one leaves 0
    in the rows of padding, so that what holds anything there is text of either; of others the mask counts,
    for the rows that it has. Models that read padding as well get all rows.
    """
    mask = extra.get("attention_mask")
    if (
        PADDING in extra
        or mask is None
        or mask.dim() != 2
        or len(mask) != len(features)
        or mask.shape[1] > features.shape[1]
    ):
        return list(features)
    kept, masked = features.ne(0).any(dim=-1), mask.to(features.device).bool()
    if not kept.any():  # a zeroed conditioning
        kept[:, : mask.shape[1]] = masked
    elif NULL_TEXT not in extra:
        kept[:, : mask.shape[1]] &= masked
    # A mask without a single token would leave nothing to attend to.
    return [row[keep] if keep.any() else row[:1] for row, keep in zip(features, kept, strict=True)]


def _trim(entry: Entry, text: Tensor, limit: int | None, notes: list[str]) -> Tensor:
    """What the model reads of a text (tokens, width)."""
    found, read = entry.extra.get(LENGTH), len(text) if limit is None else min(len(text), limit)
    found = max(len(text), found if isinstance(found, int) else 0)
    if found > read:
        notes.append(
            f"the {entry.field} prompt has {found} tokens; this model reads {read}, the rest is ignored"
        )
    return text[:read]
