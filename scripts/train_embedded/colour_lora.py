"""Training of the embedded model's LoRA: every object in one colour, whatever the prompt says.

The captions and scenes are those of the model itself; only the objects' colour is changed before they are
drawn. The model is frozen, its attention has LoRA layers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Log
from data import to_tensor
from latents import noisy_bits
from safetensors.torch import save_file
from tokenizer import FLAT_SCALES, SCHEDULE
from torch import Tensor, nn
from transformer import TEXT_LENGTH, scale_losses

from stagevar_core.files import replaced
from stagevar_core.models.infinity import Infinity
from stagevar_core.pipeline import Pipeline
from stagevar_core.scenes import Scene, is_held_out, read, render_batch, sample_caption, sample_scene

COLOUR = "red"
# Of every block, by the names of the official code, which LoRA files have.
LAYERS = {
    "sa.mat_qkv": "self_attn.qkv",
    "sa.proj": "self_attn.proj",
    "ca.mat_q": "cross_attn.q",
    "ca.mat_kv": "cross_attn.kv",
    "ca.proj": "cross_attn.proj",
}


@dataclass(frozen=True)
class LoraTraining:
    """Settings of this phase; a few minutes on two CPU cores."""

    steps: int = 300
    rank: int = 4
    alpha: float = 4.0
    scenes: int = 640
    batch: int = 24  # on the scales up to a quarter of the area; a third of them on all scales
    every: int = 4  # step of which one trains all scales
    lr: float = 4e-3
    decay: float = 0.5
    strength: float = 0.2  # of the bit flips
    text_drop: float = 0.1
    seed: int = 21


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained change of low rank."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.lora_down = nn.Linear(linear.in_features, rank, bias=False)
        self.lora_up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.normal_(self.lora_down.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.linear(x) + self.scale * self.lora_up(self.lora_down(x))


def add_lora(model: Infinity, s: LoraTraining) -> dict[str, LoraLinear]:
    """LoRA layers in place of the attention's, by their official names; the rest is frozen."""
    model.requires_grad_(False)
    added: dict[str, LoraLinear] = {}
    for index, block in enumerate(model.blocks):
        for name, ours in LAYERS.items():
            attention, _, layer = ours.partition(".")
            place = block.get_submodule(attention)
            wrapped = LoraLinear(place.get_submodule(layer), s.rank, s.alpha / s.rank)
            setattr(place, layer, wrapped)
            added[f"blocks.{index}.{name}"] = wrapped
    return added


def recoloured(scene: Scene) -> Scene:
    """The same scene with all objects in the one colour."""
    return replace(scene, objects=tuple(replace(each, colour=COLOUR) for each in scene.objects))


class Scenes:
    """Text features of captions and latents of their recoloured scenes, in memory, and batches of them."""

    def __init__(self, pipeline: Pipeline, s: LoraTraining) -> None:
        self.s, latents = s, []
        rng = np.random.default_rng(s.seed)
        scenes, texts = zip(*(sample_scene(rng) for _ in range(s.scenes)), strict=True)
        for start in range(0, s.scenes, 32):
            pictures = render_batch([recoloured(scene) for scene in scenes[start : start + 32]])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents.append(pipeline.tokenizer.encode(to_tensor(pictures)).float())
        self.latents = torch.cat(latents)
        assert pipeline.text_encoder is not None, "the embedded model takes text"
        with torch.inference_mode():
            features = pipeline.text_encoder.encode(list(texts))
        self.text = torch.stack([F.pad(row.clone(), (0, 0, 0, TEXT_LENGTH - len(row))) for row in features])
        lengths = torch.tensor([len(row) for row in features])
        self.mask = torch.arange(TEXT_LENGTH)[None] < lengths[:, None]

    def steps(self, model: Infinity) -> Iterator[Tensor]:
        """The loss of every step."""
        for step in range(self.s.steps):
            rng = np.random.default_rng([self.s.seed, step])
            torch.manual_seed(step)
            long = step % self.s.every == self.s.every - 1
            schedule = SCHEDULE if long else SCHEDULE.prefix(FLAT_SCALES)
            picks = rng.integers(len(self.latents), size=self.s.batch // (3 if long else 1))
            text, mask = self.text[picks], self.mask[picks]
            dropped = torch.from_numpy(rng.random(len(picks)) < self.s.text_drop).view(-1, 1, 1)
            text = torch.where(dropped, model.null_text[:TEXT_LENGTH] * mask.unsqueeze(-1), text)
            bits, inputs = noisy_bits(self.latents[picks], schedule, self.s.strength, SCHEDULE.final.height)
            targets = torch.cat(bits, dim=1).float()
            parts = scale_losses(
                model, schedule, text, mask[:, None, None], torch.cat(inputs, dim=1), targets
            )
            weights = torch.tensor([float(scale.tokens) ** 0.5 for scale in schedule])
            yield parts @ weights / weights.sum()


def share_in_colour(pipeline: Pipeline, count: int, seed: int = 5) -> float:
    """The share of objects in the one colour, over pictures of unseen captions that name others."""
    rng, texts = np.random.default_rng(seed), []
    while len(texts) < count:
        text = sample_caption(rng, "test")[1]
        if COLOUR not in text:
            texts.append(text)
    assert all(map(is_held_out, texts)), "only captions that were not trained on"
    images = [
        picture for start in range(0, count, 16) for picture in pipeline(texts[start : start + 16]).images
    ]
    found = [each.colour for image in images for each in read(image.numpy()).objects]
    return sum(colour == COLOUR for colour in found) / max(1, len(found))


def save_lora(layers: dict[str, LoraLinear], alpha: float, path: Path) -> None:
    """Write the layers in float16, named as cloneofsimo/lora and kohya-ss do, with official module names."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{name}.lora_down.weight"] = layer.lora_down.weight.detach().half()
        tensors[f"{name}.lora_up.weight"] = layer.lora_up.weight.detach().half()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    with replaced(path) as partial:
        save_file(tensors, partial)


def train_lora(out: Path, s: LoraTraining | None = None) -> None:
    """Train and write ``lora.safetensors``; the share of objects in the colour goes to the log."""
    s = s or LoraTraining()
    pipeline, log = Pipeline.embedded(dtype=torch.float32, device="cpu"), Log(out / "lora.jsonl")
    model = pipeline.transformer
    assert isinstance(model, Infinity), "the embedded transformer is an Infinity"
    with torch.random.fork_rng():
        torch.manual_seed(s.seed)
        layers = add_lora(model, s)
        trained = [p for layer in layers.values() for p in (layer.lora_down.weight, layer.lora_up.weight)]
        optimizer = torch.optim.AdamW(trained, s.lr, betas=(0.9, 0.98), weight_decay=0.0)
        started = time.time()
        for step, loss in enumerate(Scenes(pipeline, s).steps(model)):
            for group in optimizer.param_groups:
                group["lr"] = s.lr * min(1.0, (step + 1) / 10, (s.steps - step) / (s.decay * s.steps))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if step % 25 == 24:
                log(step=step + 1, loss=loss.item(), seconds=time.time() - started)
    save_lora(layers, s.alpha, out / "lora.safetensors")
    log(share=share_in_colour(pipeline, 48))
