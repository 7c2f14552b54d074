"""Which model a checkpoint holds, from tensor names and shapes alone: ordered family specifications.

A new family is a file of them and a line in ``SPECS``; file names are never looked at. Only first dimensions
of weights are read, because quantised files may change the others.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import families_infinity, families_star, families_var
from .convert import routes
from .errors import CheckpointError, listed
from .header import ModelConfig
from .spec import FamilySpec, Shapes, first_match

# What loaders ask for, and how people call it.
KINDS = {"transformer": "a transformer", "tokenizer": "an image tokenizer", "text_encoder": "a text encoder"}


class Detected(NamedTuple):
    """A recognised file: its specification and the configuration that its shapes show."""

    spec: FamilySpec[Any]
    config: ModelConfig


# Specific before broad; the first match wins.
SPECS: tuple[FamilySpec[Any], ...] = (
    *families_infinity.SPECS,
    *families_star.SPECS,
    *families_var.SPECS,
    families_infinity.T5,
)

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


def recognise(keys: Sequence[str], source: str) -> FamilySpec[Any] | None:
    """The first specification that these keys match; raises for a known file with unreleased options."""
    spec = next((spec for spec in SPECS if spec.matches(keys)), None)
    if spec is None:
        return None
    for pattern, meaning in spec.unsupported:
        if key := first_match(pattern, keys):
            raise CheckpointError(
                f"{source}: the key {key} stands for {meaning}, an option that no released {spec.title} "
                "uses; expected a checkpoint with the released settings. Use one of the published files"
            )
    return spec


def detect(
    shapes: Mapping[str, Sequence[int]],
    source: str = "checkpoint",
    tensors: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Detected:
    """Family and configuration of a file from its tensor names and shapes, in any known naming style.

    ``tensors``: the file's, where the values of small buffers may be read as well. ``settings``: of the
    training run, where the file carries them.
    """
    spec = recognise(list(shapes), source)
    if spec is None:
        raise unknown(list(shapes), source)
    return Detected(spec, config_of(spec, shapes, source, tensors, settings))


def config_of(
    spec: FamilySpec[Any],
    shapes: Mapping[str, Sequence[int]],
    source: str,
    tensors: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The configuration of a file of a known kind, see :func:`detect`."""
    planned = routes(shapes, spec.key_map, source)
    named = {route.target: shapes[key] for key, route in planned.items() if route.target is not None}
    buffers = {key: tensors[key] for key in spec.buffers if tensors and key in tensors}
    return spec.config_from(Shapes(named, source, buffers, settings))


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
    known = dict.fromkeys(
        f"{spec.title} (with keys like {_readable(spec)})" for spec in SPECS if spec.key_map
    )
    return CheckpointError(
        f"{source}: no known model; found {found}. Expected one of: {'; '.join(known)}. "
        + (f"This looks like {guess}, which the StageVAR loaders cannot use. " if guess else "")
        + "Choose a file from the model table of the README"
    )


def _readable(spec: FamilySpec[Any]) -> str:
    keys = (re.sub(r"\(\?:[^)]*\)\??", "", key.split("|")[0]) for key in spec.keys_required[:3])
    return ", ".join(re.sub(r"\\", "", key).replace(".*", "*") for key in keys)
