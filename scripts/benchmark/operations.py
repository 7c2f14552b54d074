"""Operations of a generation that are no views, counted on the meta device; on a GPU each starts a kernel.

Nothing is computed, so that neither weights nor a GPU are needed. What runs on the CPU beside the device, as
the coordinates of tokens do, is not counted, nor are allocations.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagevar_core.acceleration.presets import preset
from stagevar_core.checkpoints.detect import spec_of
from stagevar_core.conditioning.types import ClassConditioning, TextConditioning
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings

from .models import FULL_SIZE


class Operations(TorchDispatchMode):
    """Counts, by name, what starts on the meta device while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given, results = _tensors((args, kwargs)), _tensors(made)
        if not any(each.is_meta for each in (*given, *results)):
            return made
        known = {_storage(each) for each in given}
        writes = any(each.alias_info and each.alias_info.is_write for each in func._schema.arguments)
        view = bool(results) and not writes and all(_storage(each) in known for each in results)
        name = func.overloadpacket.__name__
        if not view and not name.startswith(("empty", "new_empty")):
            self.found[name] += 1
        return made


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


COUNTED = ("off", "balanced")


def operations(name: str, pixels: int | None, text_tokens: int) -> dict[str, int]:
    """Operations of one guided picture in bfloat16 by preset, without its decoding."""
    family, config, codes = FULL_SIZE[name]
    return {each: sum(counted(family, config, codes, pixels, each, text_tokens).values()) for each in COUNTED}


def counted(  # noqa: PLR0913 - a model, what it makes and how
    family: str, config: Any, codes: Any, pixels: int | None, policy: str, text_tokens: int
) -> Counter[str]:
    """The same of a model of this shape under one preset, by name."""
    spec = spec_of("transformer", family)
    sizes, defaults = spec.sizes(config), spec.defaults
    side = pixels or defaults.get("height") or max(sizes.image_size(sizes.snap(4096, 4096)))
    schedule = sizes.snap(side, side)
    model = spec.module(config, dtype=torch.bfloat16, device="meta")
    tokenizer = spec_of("tokenizer", spec.tokenizer or family).module(codes, device="meta")
    conditioning: Any = ClassConditioning((0,), None, torch.device("meta"))
    if config.text_width:
        length = getattr(config, "context", min(text_tokens, getattr(config, "null_rows", text_tokens)))
        text = torch.empty(length, config.text_width, device="meta")
        conditioning = TextConditioning((text,), null=text)
    try:
        quantizer = model.quantizer()
    except ValueError:
        quantizer = tokenizer.quantizer()
    with Operations() as mode:
        generate(
            model,
            conditioning,
            schedule,
            SamplingSettings(cfg_scale=3.0),
            noise=SeededNoise.of([0]),
            quantizer=quantizer,
            policy=preset(policy),
            device="meta",
        )
    return mode.found
