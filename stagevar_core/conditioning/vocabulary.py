"""What the text encoders share: finding and reading a vocabulary, strict weights, prompts by length."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOG = logging.getLogger(__name__)


def first_vocabulary(
    folders: Sequence[Path], published: Sequence[str], convert: Callable[[Path], str]
) -> str | None:
    """The ``tokenizers`` JSON of the first folder that has one, None without any.

    ``published``: files that ``convert`` makes one from, where a folder has them all instead.
    """
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return (folder / "tokenizer.json").read_text(encoding="utf-8")
        if all((folder / name).is_file() for name in published):
            return convert(folder)
    return None


def parse_vocabulary(tokenizer_json: str, size: int) -> "Tokenizer":
    """The tokenizer in this JSON; ``ValueError`` when it is none or has more than ``size`` tokens."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(
            f"the text encoder's vocabulary is not a tokenizers JSON: {error}; load the file as published"
        ) from error
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1  # ids may leave gaps
    if tokens > size:
        raise ValueError(
            f"the vocabulary has {tokens} tokens, the text encoder {size}; they do not belong together. "
            "Load the vocabulary that comes with this text encoder"
        )
    # Files may carry the padding and cutting of their training, which would change the features.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def without_surrogates(prompt: str) -> str:
    """``prompt`` as tokenizers take it: command lines and file names may carry lone surrogates."""
    return prompt.encode("utf-8", "replace").decode("utf-8")


def warn_of_cut(found: int, limit: int) -> None:
    """Say that a prompt loses its end."""
    _LOG.warning("the prompt has %d tokens; this model reads %d, the rest was cut off", found, limit)


def strict_weights(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    kind: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """``given`` as ``dtype`` on ``device``; ``ValueError`` for missing, unknown or misshapen tensors.

    ``expected``: the same names, with tensors of the right shapes. ``kind``: of the encoder, for the error.
    """
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"the text encoder lacks {len(missing)} tensors {missing[:4]} and has {len(unknown)} that do not "
            f"belong to it {unknown[:4]}; expected a {kind} encoder in the Hugging Face layout"
        )
    for name, tensor in expected.items():
        found, wanted = tuple(given[name].shape), tuple(tensor.shape)
        if found != wanted:
            raise ValueError(f"{name} of the text encoder is {found}, expected {wanted}")
    return {name: given[name].to(device=device, dtype=dtype) for name in expected}


def encode_by_length(
    prompts: Sequence[str],
    tokenize: Callable[[str], list[int]],
    run: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Features of each prompt, (tokens, width) in float32; ``run`` takes ids (B, L) to (B, L, width).

    Prompts of equal length share a pass, so there is no padding to mask.
    """
    ids = {prompt: tokenize(prompt) for prompt in dict.fromkeys(prompts)}
    features: dict[str, Tensor] = {}
    for length in sorted({len(tokens) for tokens in ids.values()}):
        group = [prompt for prompt, tokens in ids.items() if len(tokens) == length]
        batch = torch.tensor([ids[prompt] for prompt in group], device=device)
        features.update(zip(group, run(batch).float(), strict=True))
    return tuple(features[prompt] for prompt in prompts)
