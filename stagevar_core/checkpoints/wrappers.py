"""Finding the weights inside what a file holds: training checkpoints nest them, many tools prefix them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from .header import KEY

# Names that hold weights, the preferred ones first; averaged copies ("ema") are the last choice.
WRAPPERS = (
    "gpt_fsdp",
    "gpt_wo_ddp",
    "var_wo_ddp",
    "vae",
    "vae_local",
    "state_dict",
    "model",
    "module",
    "trainer",
    "var",
    "transformer",
    "tokenizer",
    "text_encoder",
    "gpt_ema_fsdp",
    "gpt_ema_for_vis",
    "ema",
    "ema_model",
    "model_ema",
)
# What tools put before the names of a model, one after the other and in any order: wrappers of PyTorch,
# ComfyUI's parts of a checkpoint and names of text encoders, attributes of training code.
PREFIXES = frozenset(
    (*WRAPPERS, "_orig_mod", "_fsdp_wrapped_module", "_forward_module", "first_stage_model")
    + ("diffusion_model", "cond_stage_model", "text_encoders", "t5", "t5xxl", "clip_h", "clip_l")
)
AVERAGED = ("gpt_ema_fsdp", "gpt_ema_for_vis", "ema", "ema_model", "model_ema")
_MAX_RECORDS = 16  # a checkpoint has three parts
_MAX_DEPTH = 4  # of nested entries; published files have two levels


class Group(NamedTuple):
    """One set of tensors of a file, the names that lead to it and the prefix that all its keys have there.

    ``settings``: what a training checkpoint says about its run, in its entry ``config``. ``record``: our
    header, where the file keeps it as a tensor.
    """

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = MappingProxyType({})
    prefix: str = ""
    record: Tensor | None = None

    @property
    def keys(self) -> list[str]:
        """The names that the file has for its tensors."""
        return [self.prefix + name for name in self.tensors]


def groups(content: Mapping[str, Any]) -> Iterator[Group]:
    """Sets of tensors that may be a model, the preferred ones first. Nothing is copied."""
    seen: set[int] = set()

    def walk(entry: Mapping[str, Any], path: tuple[str, ...], outer: Mapping[str, Any]) -> Iterator[Group]:
        seen.add(id(entry))  # entries may hold each other
        said = entry.get("config")
        settings = said if isinstance(said, Mapping) else outer
        yield from _by_prefix(entry, path, settings)
        if len(path) < _MAX_DEPTH:
            for name in WRAPPERS:
                inner = entry.get(name)
                if isinstance(inner, Mapping) and id(inner) not in seen:
                    yield from walk(inner, (*path, name), settings)

    return walk(content, (), MappingProxyType({}))


def extras(content: Mapping[str, Any]) -> dict[str, int]:
    """Other entries that hold tensors (discriminator, optimizer state), with their number of tensors."""
    seen: set[int] = set()
    counts: dict[str, int] = {}

    def count(value: Any, depth: int) -> int:
        if isinstance(value, Tensor):
            return 1
        if not isinstance(value, Mapping) or depth > _MAX_DEPTH or id(value) in seen:
            return 0
        seen.add(id(value))
        return sum(count(entry, depth + 1) for entry in value.values())

    def walk(entry: Mapping[str, Any], path: tuple[str, ...]) -> None:
        seen.add(id(entry))
        for name, value in entry.items():
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            if name in WRAPPERS and len(path) < _MAX_DEPTH:
                walk(value, (*path, name))
            elif tensors := count(value, 0):
                counts[".".join((*path, str(name)))] = tensors

    walk(content, ())
    return counts


def beside(chosen: Group, found: list[Group]) -> dict[str, int]:
    """Tensors of the same entry with another prefix than those that are loaded, by their first name."""
    same = (group for group in found if group.path == chosen.path and group is not chosen)
    keys = (key for group in same for key in group.keys if not key.endswith("logit_scale"))
    return dict(Counter(key.partition(".")[0] for key in keys))


def split_prefix(key: str) -> int:
    """How many leading characters of a key are known prefixes; the name behind them is never empty."""
    start = 0
    while (stop := key.find(".", start, start + 32)) >= 0 and stop + 1 < len(key):
        if key[start:stop] not in PREFIXES:
            break
        start = stop + 1
    return start


def _by_prefix(
    content: Mapping[str, Any], path: tuple[str, ...], settings: Mapping[str, Any]
) -> Iterator[Group]:
    """The tensors of one entry, those with other prefixes apart; averaged ones last."""
    parted: dict[str, dict[str, Tensor]] = {}
    records: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            place = split_prefix(key)
            if key[place:] == KEY:
                records[key[:place]] = value
            else:
                parted.setdefault(key[:place], {})[key[place:]] = value
    for prefix in sorted(parted, key=lambda prefix: any(word in AVERAGED for word in prefix.split("."))):
        nearest = max(filter(prefix.startswith, list(records)[:_MAX_RECORDS]), key=len, default=None)
        record = None if nearest is None else records[nearest]
        yield Group(path, parted[prefix], settings, prefix, record)
