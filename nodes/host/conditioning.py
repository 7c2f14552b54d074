"""ComfyUI conditioning to what the core takes: text features or class labels, one per image."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...stagevar_core.conditioning.labels import class_index
from ...stagevar_core.conditioning.types import ClassConditioning, Conditioning, TextConditioning
from ...stagevar_core.models.contract import Transformer

_LOG = logging.getLogger(__name__)
# Entries of a conditioning's dictionary.
NULL_TEXT = "stagevar_null_text"  # features of the empty prompt (1, tokens, width)
CLASS_LABEL = "stagevar_class_label"  # the number of a class, -1 for none
# Of core nodes: pairs of features (prompts, tokens, width) and a dictionary of what else is known.
HostConditioning = Sequence[Sequence[Any]]


class Entry(NamedTuple):
    """The conditioning that is used of an input of the sampler. ``field``: the input's name."""

    field: str
    features: Tensor
    extra: dict[str, Any]


class Prompted(NamedTuple):
    """What a run is conditioned on, and what of its inputs is left out, for the node."""

    conditioning: Conditioning
    notes: tuple[str, ...]


def conditioning_of(
    network: Transformer, positive: HostConditioning, negative: HostConditioning | None, batch: int
) -> Prompted:
    """What ``batch`` images of a transformer are conditioned on; raises ``ValueError`` where it is the other.

    Without ``negative`` the model's own null text or class takes its place, or the encoded empty prompt where
    it learned none.
    """
    given = [("positive", positive), *([] if negative is None else [("negative", negative)])]
    notes: list[str] = []
    entries = [_entry(field, conditioning, notes) for field, conditioning in given]
    if network.classes is None:
        conditioning = _texts(network, entries, batch, notes)
    else:
        conditioning = _classes(network.family, network.classes, entries, batch)
    said = tuple(dict.fromkeys(notes))
    for note in said:
        _LOG.warning("StageVAR: %s", note)
    return Prompted(conditioning, said)


def _entry(field: str, conditioning: HostConditioning, notes: list[str]) -> Entry:
    """The first conditioning of an input."""
    if not conditioning:
        raise ValueError(f"{field}: the conditioning is empty; connect CLIP Text Encode or Class Label")
    if len(conditioning) > 1:
        notes.append(
            f"{field} holds {len(conditioning)} conditionings; the first one is used, combined or scheduled "
            "ones are not"
        )
    return Entry(field, *conditioning[0][:2])


def _classes(family: str, classes: int, entries: list[Entry], batch: int) -> ClassConditioning:
    labels = []
    for field, _, extra in entries:
        if CLASS_LABEL not in extra:
            raise ValueError(
                f"{field}: found a text; this {family.upper()} model is conditioned on a class. "
                "Connect Class Label instead of CLIP Text Encode"
            )
        try:
            labels.append((class_index(extra[CLASS_LABEL], classes),) * batch)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
    return ClassConditioning(*labels)


def _texts(network: Transformer, entries: list[Entry], batch: int, notes: list[str]) -> TextConditioning:
    for field, _, extra in entries:
        if CLASS_LABEL in extra:
            raise ValueError(
                f"{field}: found a class label; this {network.family} model is conditioned on text. Connect "
                "CLIP Text Encode instead of Class Label"
            )
    null = None if network.learned_null else _null_text(network, entries[0])
    return TextConditioning(*(_prompts(network, entry, batch, notes) for entry in entries), null=null)


def _null_text(network: Transformer, entry: Entry) -> Tensor:
    """The features of the empty prompt (tokens, width), which come with those of a prompt."""
    _check_width(entry, network.config.text_width)
    null = entry.extra.get(NULL_TEXT)
    if null is None or "attention_mask" not in entry.extra:
        raise ValueError(
            f"{entry.field}: the text features do not say where the text ends, which {network.family} models "
            "have to know. Load the text encoder of Stable Diffusion 2.1 with Load StageVAR Text Encoder; "
            "ComfyUI's own loader leaves this out"
        )
    return null[0]


def _prompts(network: Transformer, entry: Entry, batch: int, notes: list[str]) -> tuple[Tensor, ...]:
    """One (tokens, width) tensor per image: the prompts in turn, as ComfyUI fills batches."""
    _check_width(entry, network.config.text_width)
    rows = _without_padding(entry.features, entry.extra)
    texts = [_trim(entry.field, row, network.longest_text, notes) for row in rows]
    if len(texts) > batch:
        notes.append(f"{entry.field} holds {len(texts)} prompts for {batch} images; the rest is ignored")
    return tuple(texts[index % len(texts)] for index in range(batch))


def _check_width(entry: Entry, width: int) -> None:
    shape = tuple(getattr(entry.features, "shape", ()))  # other packs may hand on anything
    if len(shape) == 3 and shape[0] and shape[1] and shape[2] == width:
        return
    known = {2048: "Flan-T5-XL", 1024: "that of Stable Diffusion 2.1"}
    raise ValueError(
        f"{entry.field}: found text features of shape {shape}; this model expects (prompts, tokens, "
        f"{width}). Encode the prompt with the text encoder the model was trained with: "
        f"{known.get(width, 'the built-in one')}, through Load StageVAR Text Encoder"
    )


def _without_padding(features: Tensor, extra: dict[str, Any]) -> list[Tensor]:
    mask = extra.get("attention_mask")
    if mask is None or tuple(mask.shape) != tuple(features.shape[:2]):
        return list(features)
    kept = mask.to(features.device).bool()
    # A mask without a single token (a zeroed conditioning) would leave nothing to attend to.
    return [row[keep] if keep.any() else row[:1] for row, keep in zip(features, kept, strict=True)]


def _trim(field: str, text: Tensor, limit: int | None, notes: list[str]) -> Tensor:
    if limit is None or len(text) <= limit:
        return text
    notes.append(f"the {field} prompt has {len(text)} tokens; this model reads {limit}, the rest is ignored")
    return text[:limit]
