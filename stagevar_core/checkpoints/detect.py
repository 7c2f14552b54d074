"""Which model a checkpoint holds, from tensor names and shapes alone: ordered family specifications.

A new family is a file of them and a line in ``SPECS``; file names are never looked at. Only first dimensions
of weights are read, because quantised files may change the others.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import families_clip, families_hart, families_infinity, families_star, families_switti, families_var
from .convert import Route
from .errors import CheckpointError, article, listed, short
from .header import Header, ModelConfig
from .spec import FamilySpec, Shapes, first_match
from .wrappers import Group, split_prefix

# What loaders ask for, and how people call it.
KINDS = {"transformer": "a transformer", "tokenizer": "an image tokenizer", "text_encoder": "a text encoder"}


# Specific before broad; the first match wins.
SPECS: tuple[FamilySpec[Any], ...] = (
    *families_infinity.SPECS,
    *families_hart.SPECS,
    *families_star.SPECS,
    *families_switti.SPECS,
    *families_var.SPECS,
    families_hart.OWN_TOKENIZER,
    *families_clip.SPECS,
    families_infinity.T5,
)

_MAX_WORDS, _MAX_TRIED = 5, 40  # of prefixes that may hide a model

# What files of other kinds look like, for the advice in the error.
LOOKALIKES: tuple[tuple[str, str], ...] = (
    (r"(?:model\.)?diffusion_model\..*|first_stage_model\..*", "an all-in-one diffusion checkpoint"),
    (
        r"(?:double_blocks|joint_blocks|input_blocks|down_blocks|transformer_blocks)\.\d.*",
        "a diffusion model",
    ),
    (r".*\.(?:lora_(?:up|down|A|B)|alpha)(?:\..*)?", "a LoRA"),
    (r"quantize\.embedding\..*", "a VAR image tokenizer of which parts are missing"),
    (r"class_emb\.weight", "a class-conditional VAR transformer of which parts are missing"),
    (r"(?:post_)?quant_conv\..*|(?:en|de)coder\.mid\.attn_1\..*", "the VAE of a diffusion model"),
    (r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", "a umT5 text encoder"),
    (r"(?:text_model|transformer\.text_model|cond_stage_model)\..*", "a CLIP text encoder"),
    (r"(?:model\.)?layers\.\d+\.self_attn\..*", "a language model"),
    (r"decoder\.(?:conv_in|up)\..*", "the decoder half of an image tokenizer"),
)


def recognise(keys: Sequence[str], prefix: str = "") -> FamilySpec[Any] | None:
    """The first specification that these keys match, None for what is no known model.

    ``prefix``: what the file has before all of them.
    """
    return next((spec for spec in SPECS if spec.matches(keys, prefix)), None)


def named(header: Header | None, keys: Sequence[str], found: FamilySpec[Any]) -> FamilySpec[Any]:
    """The specification that a header of ours names, where it matches these keys as ``found`` does."""
    if header is None:
        return found
    said = (header.kind, header.family)
    return next((spec for spec in SPECS if (spec.kind, spec.name) == said and spec.matches(keys)), found)


def refuse_options(spec: FamilySpec[Any], keys: Sequence[str], source: str) -> None:
    """Raise for a known file with options that no release has."""
    for pattern, meaning in spec.unsupported:
        if key := first_match(pattern, keys):
            raise CheckpointError(
                f"{source}: the key {key} stands for {meaning}, an option that no released {spec.title} "
                "uses; expected a checkpoint with the released settings. Use one of the published files"
            )


def configure(spec: FamilySpec[Any], group: Group, planned: Mapping[str, Route], source: str) -> ModelConfig:
    """The configuration that the shapes of a recognised group show, and where they count its small buffers.

    Raises for a known file with unreleased options. ``planned``: the routes of its keys.
    """
    refuse_options(spec, list(group.tensors), source)
    named = {route.target: group.tensors[key].shape for key, route in planned.items() if route.target}
    buffers = {key: group.tensors[key] for key in spec.buffers if key in group.tensors}
    return spec.config_from(Shapes(named, source, buffers, group.settings))


def spec_of(kind: str, family: str) -> FamilySpec[Any]:
    """The specification of a kind and family; ``ValueError`` naming the known ones where there is none."""
    known = {(spec.kind, spec.name): spec for spec in reversed(SPECS)}
    if (kind, family) not in known:
        names = [name for of, name in known if of == kind]
        raise ValueError(f"the {kind.replace('_', ' ')} is of the family {family!r}; expected one of {names}")
    return known[kind, family]


def unknown(keys: Sequence[str], source: str) -> CheckpointError:
    """The error for a file that no specification matches: what it has, what was expected, what it may be."""
    guess = next((text for pattern, text in LOOKALIKES if first_match(pattern, keys)), None)
    found = f"{len(keys)} tensors such as {listed(keys, 4)}" if keys else "no tensors"
    examples = {spec.title: spec.example for spec in SPECS if spec.key_map and spec.kind != "text_encoder"}
    known = [f"{title} (with {example})" for title, example in examples.items()]
    known += dict.fromkeys(spec.title for spec in SPECS if spec.key_map and spec.title not in examples)
    return CheckpointError(
        f"{source}: no known model; found {found}. {_under_prefix(keys)}\n"
        f"Expected one of: {', '.join(known)}.\n"
        + (f"This looks like {guess}, which the StageVAR loaders cannot use. " if guess else "")
        + "Choose a file from the model table of the README"
    )


def _under_prefix(keys: Sequence[str]) -> str:
    """What an unknown prefix hides or could hide, a sentence; empty without one."""
    names = [key[split_prefix(key) :] for key in keys]
    counts = Counter(
        ".".join(words[:depth])
        for name in names
        for words in [name.split(".", _MAX_WORDS)]
        for depth in range(1, len(words))
    )
    for prefix, count in counts.most_common(_MAX_TRIED):
        behind = [name[len(prefix) + 1 :] for name in names if name.startswith(f"{prefix}.")]
        if spec := recognise([name[split_prefix(name) :] for name in behind]):
            share = "All" if count == len(names) else f"{count} of {len(names)}"
            return (
                f"{share} keys begin with `{short(prefix)}.`, which is not known; behind it are those of "
                f"{article(spec.title)}. Save the model again without that prefix."
            )
    common = os.path.commonprefix(names).rpartition(".")[0]
    return f"All keys begin with `{short(common)}.`." if common and len(names) > 1 else ""
