"""Text encoders as a core CLIP, for CLIP Text Encode and everything else that takes one."""

import inspect
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch
from comfy import sd1_clip
from comfy.cli_args import args

from ...stagevar_core.checkpoints.load import Checkpoint
from . import clip_pair, clip_qwen, clip_sd2, clip_t5
from .bridge import WEIGHT_DTYPES
from .schema import Folders

_LOG = logging.getLogger(__name__)
_FAMILIES = {"t5": clip_t5, "clip": clip_sd2, "qwen2": clip_qwen}
_SMALL = 500_000_000  # parameters up to which float32 costs nothing worth saving


class _Pair:
    """What ``comfy.sd.CLIP`` builds two CLIPs from."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        parts = [
            clip_sd2.parts(checkpoint, f"clip_{name}")
            for checkpoint, name in zip(checkpoints, clip_pair.NAMES, strict=True)
        ]
        encoders, tokenizers = zip(*parts, strict=True)

        class Model(clip_pair.PairEncoder):
            def __init__(self, device="cpu", dtype=None, model_options=None) -> None:
                super().__init__(device, dtype, model_options, encoders=encoders)
                _widen(self)

        self.params: dict[str, Any] = {}
        self.clip, self.tokenizer = Model, partial(clip_pair.PairTokenizer, tokenizers=tokenizers)


class _Target:
    """What ``comfy.sd.CLIP`` builds an encoder from."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        family = _FAMILIES[checkpoint.family]
        encoder, vocabulary = family.parts(checkpoint)

        class Model(sd1_clip.SD1ClipModel):
            def __init__(self, device="cpu", dtype=None, model_options=None) -> None:
                super().__init__(
                    device=device,
                    dtype=dtype,
                    model_options=model_options or {},
                    name=family.NAME,
                    clip_model=encoder,
                )
                _widen(self)

        class Tokenizer(sd1_clip.SD1Tokenizer):
            def __init__(self, embedding_directory=None, tokenizer_data=None) -> None:
                super().__init__(
                    embedding_directory=embedding_directory,
                    tokenizer_data=tokenizer_data or {},
                    name=family.NAME,
                    tokenizer=vocabulary,
                )

        self.params: dict[str, Any] = {}
        self.clip, self.tokenizer = Model, Tokenizer


def _widen(model: torch.nn.Module) -> None:
    """Keep out of fp8 what it would ruin and what hardly takes memory: norms, biases, position tables."""
    for name, parameter in model.named_parameters():
        if parameter.dtype.itemsize == 1 and (parameter.dim() < 2 or "relative_attention_bias" in name):
            parameter.data = parameter.data.to(torch.bfloat16)


def load_text_encoder(
    checkpoint: Checkpoint,
    weight_dtype: str,
    embedding_directory: Folders,
    second: Checkpoint | None = None,
) -> comfy.sd.CLIP:
    """A core CLIP of a text encoder's checkpoint, or of two CLIPs'."""
    checkpoints = [checkpoint] if second is None else clip_pair.ordered((checkpoint, second))
    parameters = sum(each.parameters for each in checkpoints)
    dtype = _storage_dtype(WEIGHT_DTYPES[weight_dtype], parameters)
    wide = torch.bfloat16 if dtype.itemsize == 1 else dtype  # the encoder narrows what it stores
    weights = [{name: tensor.to(wide) for name, tensor in each.tensors.items()} for each in checkpoints]
    for each in checkpoints:
        each.tensors.clear()
    known = inspect.signature(comfy.sd.CLIP.__init__).parameters
    options = {
        "embedding_directory": embedding_directory,
        "parameters": parameters,
        "model_options": {"dtype": dtype},
    }
    if "state_dict" in known:
        options["state_dict"] = weights
    clip = comfy.sd.CLIP(_Target(checkpoint) if second is None else _Pair(checkpoints), **options)
    if "state_dict" not in known:
        for tensors in weights:
            clip.load_sd(tensors)
    _LOG.info(
        "StageVAR: %s: %s text encoder with %.0fM parameters, %s weights",
        " and ".join(each.source for each in checkpoints),
        checkpoint.family,
        parameters / 1e6,
        dtype,
    )
    return clip


def _storage_dtype(chosen: torch.dtype | None, parameters: int) -> torch.dtype:
    """The user's choice, else float32 for small encoders and bfloat16; never float16 unless asked for."""
    if chosen is not None:
        return chosen
    host = mm.text_encoder_dtype(mm.text_encoder_device())
    if host != torch.float16 or args.fp16_text_enc:
        return host
    return torch.float32 if parameters < _SMALL else torch.bfloat16
