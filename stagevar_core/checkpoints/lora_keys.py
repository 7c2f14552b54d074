"""What the keys of a LoRA file say: to which layer they belong, and which half, alpha or magnitude it is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from ..checks import number
from .detect import recognise
from .errors import CheckpointError, article, listed, short
from .lora_layers import Target
from .wrappers import WRAPPERS

_MAX_ALPHA = 1e6
_MAX_DEPTH = 4  # of nested entries

# `X.lora_A.weight`, `X.lora_A.default.weight`, `X.lora_down.weight`, `X.lora.up.weight`, `X_lora.up.weight`
_HALF = re.compile(
    r"(.+?)[._]lora(?:_linear_layer)?[._](A|B|down|up)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?", re.DOTALL
)
_MAGNITUDE = re.compile(r"(.+?)\.(?:dora_scale|lora_magnitude_vector(?:\.[^.]+){0,2})", re.DOTALL)
_ALPHA = re.compile(r"(.+)\.alpha", re.DOTALL)
_HALVES = {"A": "down", "B": "up"}
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What stands before a layer's name, with `_` for full stops.
_BEFORE = (
    *("base_model_model_", "lora_unet_", "lora_transformer_", "lora_", "lycoris_"),
    *("_forward_module_", "module_", "model_", "diffusion_model_", "transformer_", "unet_", "gpt_"),
)

# Changes of other kinds, by their keys.
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r".*\.hada_w\d.*", "LoHa"),
    (r".*\.lokr_w\d.*", "LoKr"),
    (r".*\.(?:oft|boft)_.*", "OFT"),
    (r".*\.lora_mid\..*", "convolutions in Tucker form"),
    (r".*\.lora_embedding_[AB].*", "embeddings"),
    (r".*\.lora_(?:B|up)(?:\.[^.]+)?\.bias", "biases"),
    (r".*\.(?:diff|diff_b|w_norm|b_norm|set_weight)", "whole weights"),
)
# Models whose LoRAs lie in the same folder.
_LOOKALIKES: tuple[tuple[str, str], ...] = (
    (r"lora_te\d?_.*|text_encoder\d?\..*|.*text_model[._]encoder.*", "a text encoder"),
    (r".*(?:double|single)_blocks[._].*|.*single_transformer_blocks[._].*", "Flux"),
    (r".*(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks)[._].*", "Stable Diffusion"),
    (r".*joint_blocks[._].*", "Stable Diffusion 3"),
    (r".*transformer_blocks[._].*", "a diffusion transformer"),
    (r".*blocks[._]\d+[._](?:self_attn|cross_attn)[._][qkvo](?:[._].*)?", "Wan"),
    (r".*blocks[._]\d+[._](?:sa|ca)[._](?:mat_|proj).*", "Infinity"),
    (r".*blocks[._]\d+[._](?:attn[._]to_qkv|cross_attn[._]to_(?:q|kv)|ffn[._]gate_proj).*", "Switti"),
    (r".*blocks[._]\d+[._]attn[._](?:mat_qkv|proj).*", "VAR or STAR"),
    (r".*layers[._]\d+[._]self_attn[._].*", "a language model"),
)


@dataclass
class Parts:
    """What a file says about one layer, by its name there; ``halves``: 'up' and 'down'."""

    halves: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None
    magnitude: Tensor | None = None


def tensors_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a file, inside the entries that training code nests them in."""
    for _ in range(_MAX_DEPTH):
        found = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if found:
            return {_WRAPPED.sub("", str(key)): value for key, value in found.items()}
        nested = (content.get(name) for name in (*WRAPPERS, "lora", "adapter"))
        content = next((entry for entry in nested if isinstance(entry, Mapping)), {})
    raise CheckpointError(f"{source}: it holds no tensors; expected a LoRA")


def is_alpha(key: str) -> bool:
    """Whether a key is that of a number, which may be stored as a whole one."""
    return _ALPHA.fullmatch(key) is not None


def parts_of(tensors: Mapping[str, Tensor], source: str, wanted: str) -> dict[str, Parts]:
    """The parts of every layer by its name in the file.

    Raises :class:`CheckpointError` for keys that belong to no layer, naming what they are; ``wanted``: the
    model for which the LoRA is to be, in words.
    """
    _refuse_other_kinds(tensors, source)
    parts: dict[str, Parts] = {}
    later: list[tuple[str, Tensor]] = []
    for key, tensor in tensors.items():
        match = _HALF.fullmatch(key)
        if match is None:
            later.append((key, tensor))
            continue
        half = _HALVES.get(match[2], match[2])
        halves = parts.setdefault(match[1], Parts()).halves
        if half in halves:
            raise CheckpointError(
                f"{source}: {short(match[1])} has more than one {half} half; expected one LoRA in a file"
            )
        halves[half] = tensor
    if not parts:
        _refuse_model(tensors, source, wanted)
    rest = [key for key, tensor in later if not _belongs(key, tensor, parts, source)]
    _refuse_rest(rest, source)
    return parts


def placed(
    parts: Mapping[str, Parts], known: Mapping[str, Target], source: str, wanted: str
) -> dict[str, Target]:
    """The weight of every layer; :class:`CheckpointError` where the model has none, or one for two."""
    found = {layer: _target(layer, known) for layer in parts}
    strangers = [layer for layer, target in found.items() if target is None]
    if strangers:
        first, count = strangers[0], len(strangers)
        guesses = (what for pattern, what in _LOOKALIKES if re.fullmatch(pattern, first, re.DOTALL))
        guess = next((what for what in guesses if what not in wanted), None)
        share, verb = f"{count} of its", "do not belong"
        if count == len(parts):
            share, verb = "none of its", "belongs"
        seen = f"{listed(strangers, 3)}{f', as of {guess}' if guess else ''}"
        raise CheckpointError(
            f"{source}: {share} {len(parts)} LoRA layers {verb} to this model ({seen}); expected a LoRA for "
            f"{wanted}. Choose one that was trained on it"
        )
    targets = {layer: target for layer, target in found.items() if target is not None}
    if len({target.key for target in targets.values()}) < len(targets):
        raise CheckpointError(
            f"{source}: two of its LoRA layers are for the same weight; expected one LoRA in a file"
        )
    return targets


def checked_alpha(value: object, place: str) -> float:
    """A number that alpha can be; :class:`CheckpointError` naming ``place`` for another value."""
    try:
        return number(place, value, -_MAX_ALPHA, _MAX_ALPHA)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _belongs(key: str, tensor: Tensor, parts: dict[str, Parts], source: str) -> bool:
    """Whether a key is alpha or magnitude of a layer, which then has it."""
    if (match := _ALPHA.fullmatch(key)) and match[1] in parts:
        if tensor.numel() != 1 or tensor.is_meta or tensor.is_complex():
            shape = list(tensor.shape)
            raise CheckpointError(f"{source}: {short(key)} has the shape {shape}; expected a number")
        parts[match[1]].alpha = checked_alpha(float(tensor), f"{source}: {short(key)}")
        return True
    if (match := _MAGNITUDE.fullmatch(key)) and match[1] in parts:
        parts[match[1]].magnitude = tensor
        return True
    return False


def _refuse_other_kinds(keys: Iterable[str], source: str) -> None:
    for key in keys:
        kind = next((what for pattern, what in _OTHER_KINDS if re.fullmatch(pattern, key)), None)
        if kind:
            raise CheckpointError(
                f"{source}: the key {short(key)} stands for {kind}, which is not read here; expected a LoRA "
                "of linear layers alone (lora_A and lora_B, or lora_down and lora_up). Train one of those"
            )


def _refuse_model(tensors: Mapping[str, Tensor], source: str, wanted: str) -> NoReturn:
    """The error of a file without LoRA layers."""
    spec = recognise(list(tensors))
    found = f"the tensors of {article(spec.title)}" if spec else f"keys such as {listed(tensors, 3)}"
    raise CheckpointError(f"{source}: it has {found} and no LoRA; expected a LoRA for {wanted}")


def _refuse_rest(rest: list[str], source: str) -> None:
    if not rest:
        return
    with_model = any(re.search(r"\.base_layer\.|\.linear\.(?:weight|bias)$", key) for key in rest)
    advice = (
        "it holds the model as well; save the LoRA alone (save_pretrained of PEFT)"
        if with_model
        else "what was trained beside the LoRA, as by modules_to_save or bias of PEFT, is not read here; "
        "train without it"
    )
    raise CheckpointError(
        f"{source}: {len(rest)} of its keys belong to no LoRA layer ({listed(rest, 4)}): {advice}"
    )


def _target(layer: str, known: Mapping[str, Target]) -> Target | None:
    name = layer.replace(".", "_")
    while name not in known:
        before = next((prefix for prefix in _BEFORE if name.startswith(prefix)), None)
        if before is None:
            return None
        name = name[len(before) :]
    return known[name]
