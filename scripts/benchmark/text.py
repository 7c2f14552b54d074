"""What the full-size models of the bench read: random features, or those of an encoder that makes place."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.devices import synchronise

from .machine import give_back, memory_of
from .weights import FP8, fill, weight_bytes


class RandomText:
    """Stands in for the text encoder of the full-size models: fixed random features of a usual length."""

    def __init__(self, family: str | None, width: int, tokens: int, device: torch.device) -> None:
        self.family, self.width, self.device = family, width, device
        self.model = nn.Identity()  # no weights
        self.features = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1)).to(device)

    def encode(self, prompts: list[str], max_tokens: int = 512) -> tuple[Tensor, ...]:
        """The same (tokens, width) features for every prompt."""
        return tuple(self.features[:max_tokens] for _ in prompts)


class StoredLinear(nn.Module):
    """What :class:`Fp8Linear` is, under a name that the layers of ``transformers`` do not look for."""

    weight = None  # they would narrow their input to what they find here

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("narrow", linear.weight.detach().to(FP8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs) in the dtype of ``x``."""
        return F.linear(x, self.narrow.to(x.dtype))


class EncodedText(RandomText):
    """The text of a Flan-T5-XL of random weights that encoded it once and was given back.

    So it goes where the transformer needs the room: the text first, then the encoder makes place. ``seconds``
    of encoding, the ``bytes`` of its weights and the ``peak`` of the device's memory meanwhile are kept.
    """

    def __init__(
        self, config: T5EncoderConfig, tokens: int, device: torch.device, weights: torch.dtype
    ) -> None:
        super().__init__("t5", config.d_model, tokens, device)
        memory = memory_of(device)
        encoder = _t5(config, device, weights)
        ids = torch.arange(tokens, device=device).unsqueeze(0) % config.vocab_size
        memory.reset()
        started = time.perf_counter()
        with torch.inference_mode():
            self.features = encoder(input_ids=ids).last_hidden_state[0].float()
        synchronise(device)
        self.seconds = time.perf_counter() - started
        self.bytes, self.peak = weight_bytes(encoder), memory.peak()
        del encoder
        give_back()


def _t5(config: T5EncoderConfig, device: torch.device, weights: torch.dtype) -> nn.Module:
    """An encoder that computes in bfloat16, its linear layers stored as ``weights``."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config(**config.to_dict(), is_encoder_decoder=False, use_cache=False))
    encoder.to(torch.bfloat16)
    for block in encoder.encoder.block:  # one after the other, so that the wide weights are never all there
        fill(block, device)
        for part in list(block.modules()) if weights == FP8 else ():
            for name, child in part.named_children():
                if type(child) is nn.Linear:
                    setattr(part, name, StoredLinear(child))
    fill(encoder.encoder.final_layer_norm, device)
    embedding = fill(nn.Embedding(config.vocab_size, config.d_model, dtype=torch.bfloat16), device)
    encoder.set_input_embeddings(embedding)
    return encoder.eval()
