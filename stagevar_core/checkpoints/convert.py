"""From the names of published files to ours: what a key map says and how it is applied.

A key map never computes on large tensors. Biases that the files keep apart are folded into one vector (a zero
bias is stored nowhere), everything else keeps its storage under a new name.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError, listed, short


class Rename(NamedTuple):
    """Keys that match ``source`` become ``target`` (a regular expression template).

    ``dims``: leading dimensions are merged until so many are left, which drops those of size 1. ``alias``: a
    second name of a tensor, used only where the file lacks the first.
    """

    source: str
    target: str
    dims: int | None = None
    alias: bool = False


class Fold(NamedTuple):
    """``name`` is the concatenation of ``name:part`` vectors; None stands for zeros as long as the others."""

    name: str
    parts: tuple[str | None, ...]


class Ignore(NamedTuple):
    """Keys that no model here reads. ``what`` is reported; empty for what every file has."""

    pattern: str
    what: str = ""


@dataclass(frozen=True)
class KeyMap:
    """Names of one kind of file. Keys that match nothing keep their name, so that strict loading lists them.

    ``blocks``: prefixes of repeated blocks with one group per counter; the blocks found are renumbered to
    ``blocks.N`` before ``renames`` apply.
    """

    renames: tuple[Rename, ...]
    folds: tuple[Fold, ...] = ()
    ignored: tuple[Ignore, ...] = ()
    blocks: tuple[str, ...] = ()


MAX_BLOCKS = 1024  # of one kind; published models have at most 48
_DIGITS = 9  # of a block number
BLOCK = r"(blocks\.\d+)"


def self_attention(source: str, target: str) -> tuple[Rename, ...]:
    """The renames of a cosine self-attention; ``source`` has one group, to which ``target`` refers."""
    return (
        Rename(source + r"\.scale_mul_1H11", target + ".log_scale", dims=1),
        Rename(source + r"\.mat_qkv\.weight", target + ".qkv.weight"),
        Rename(source + r"\.q_bias", target + ".qkv.bias:query"),
        Rename(source + r"\.v_bias", target + ".qkv.bias:value"),
        Rename(source + r"\.proj\.(weight|bias)", target + r".proj.\2"),
    )


# What is found beside any model: of training code, and a number that ComfyUI saves with every text encoder.
BESIDE = (
    Ignore(r"logit_scale"),
    Ignore(r"(?:\w+_)?(?:discriminator|disc)\..*", "discriminator"),
    Ignore(r"(?:\w+_)?(?:loss|losses|lpips|perceptual_\w+|criterion)\..*", "training losses"),
)


class Conversion(NamedTuple):
    """Tensors under our names, and how many of which kind were left out."""

    tensors: dict[str, Tensor]
    dropped: dict[str, int]


class Route(NamedTuple):
    """Where one tensor goes: a name of ours, or (None) nowhere, with what it was."""

    target: str | None
    dims: int | None = None
    dropped: str = ""


def routes(keys: Iterable[str], key_map: KeyMap | None, source: str = "checkpoint") -> dict[str, Route]:
    """The route of every key; ``key_map`` None keeps all names. Raises for blocks that do not count up."""
    key_map, keys = key_map or KeyMap(()), list(keys)
    numbered = _number_blocks(keys, key_map.blocks, source)
    result: dict[str, Route] = {}
    aliases: list[tuple[str, Rename]] = []
    for key in keys:
        name = numbered.get(key, key)
        rules = (*key_map.ignored, *BESIDE)
        ignored = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        rename = next((rule for rule in key_map.renames if re.fullmatch(rule.source, name)), None)
        if ignored is not None:
            result[key] = Route(None, dropped=ignored.what)
        elif rename is None:
            result[key] = Route(name)
        elif rename.alias:
            aliases.append((key, rename))
        else:
            result[key] = Route(re.sub(rename.source, rename.target, name), rename.dims)
    _refuse_duplicates(result, source)
    taken = {route.target for route in result.values()}
    for key, rename in aliases:
        result[key] = Route(None if rename.target in taken else rename.target)
    return result


def convert(
    tensors: Mapping[str, Tensor],
    key_map: KeyMap | None,
    source: str = "checkpoint",
    planned: Mapping[str, Route] | None = None,
) -> Conversion:
    """``tensors`` under our names, sharing their storage; ``planned``: their routes where known."""
    planned = planned if planned is not None else routes(tensors, key_map, source)
    converted: dict[str, Tensor] = {}
    for key, route in planned.items():
        if route.target is None:
            continue
        tensor = tensors[key]
        if route.dims is not None and tensor.dim() > route.dims:
            tensor = tensor.flatten(0, tensor.dim() - route.dims)
        converted[route.target] = tensor
    for fold in key_map.folds if key_map else ():
        _fold(converted, fold, source)
    dropped = Counter(route.dropped for route in planned.values() if route.target is None and route.dropped)
    return Conversion(converted, dict(dropped))


def _number_blocks(keys: list[str], patterns: tuple[str, ...], source: str) -> dict[str, str]:
    """Keys inside blocks with a flat block number, for nested counters in their order."""
    renamed: dict[str, str] = {}
    for pattern in patterns:
        found = {key: match for key in keys if (match := re.match(pattern + r"\.", key))}
        counters = {key: _counter(match, source) for key, match in found.items()}
        order = {counter: index for index, counter in enumerate(sorted(set(counters.values())))}
        _check_counters(set(order), source)
        for key, match in found.items():
            renamed[key] = f"blocks.{order[counters[key]]}.{key[match.end() :]}"
    return renamed


def _counter(match: re.Match[str], source: str) -> tuple[int, ...]:
    if longest := max((group for group in match.groups() if len(group) > _DIGITS), key=len, default=None):
        raise CheckpointError(
            f"{source}: the block number {short(longest)} is none; expected at most {MAX_BLOCKS} blocks. "
            "Get the file again, or convert it from the original"
        )
    return tuple(int(group) for group in match.groups())


def _check_counters(present: set[tuple[int, ...]], source: str) -> None:
    """Raise when a block is missing: every counter must run from 0 without a gap."""
    if not present:
        return
    sizes = [len(set(counters)) for counters in zip(*present, strict=True)]
    if math.prod(sizes) > MAX_BLOCKS:
        raise CheckpointError(
            f"{source}: it has {len(present)} transformer blocks with numbers up to {max(present)}; expected "
            f"at most {MAX_BLOCKS} that count up from 0. Get the whole file again, or all shards of it"
        )
    expected = set(itertools.product(*map(range, sizes)))
    if present != expected:
        gaps = [".".join(map(str, counter)) for counter in expected - present]
        raise CheckpointError(
            f"{source}: {len(present)} transformer blocks are present but not without gaps (missing block "
            f"{listed(gaps)}); expected every block. Get the whole file again, or all shards of it"
        )


def _refuse_duplicates(planned: Mapping[str, Route], source: str) -> None:
    counts = Counter(route.target for route in planned.values() if route.target is not None)
    twice = [target for target, count in counts.items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{source}: {len(twice)} tensors are there twice under different names ({listed(twice)}); "
            "expected one naming style. Save the model again with one of them"
        )


def _fold(tensors: dict[str, Tensor], fold: Fold, source: str) -> None:
    """Replace the parts of every ``fold.name`` in place by their concatenation."""
    marker = f"{fold.name}:"
    owners = dict.fromkeys(key.partition(":")[0] for key in tensors if marker in key)
    for owner in owners:
        named = [f"{owner}:{part}" for part in fold.parts if part]
        missing = [name for name in named if name not in tensors]
        if missing:
            raise CheckpointError(
                f"{source}: the bias {owner} is incomplete, its part {listed(missing)} is missing; "
                "get the whole file again"
            )
        like = tensors[named[0]]
        for name in named:
            if tensors[name].dim() != 1:
                raise CheckpointError(
                    f"{source}: the {name.partition(':')[2]} part of the bias {owner} has the shape "
                    f"{list(tensors[name].shape)}; expected a vector. Get the whole file again"
                )
        parts = [tensors[f"{owner}:{part}"] if part else torch.zeros_like(like) for part in fold.parts]
        for name in named:
            del tensors[name]
        tensors[owner] = torch.cat(parts)
