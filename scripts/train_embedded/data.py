"""Batches of scenes that depend on (seed, step) alone: a resumed run sees what an unbroken one would."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stagevar_core.scenes import Scene, render_batch, sample_scene, shape_map


def scene_batch(seed: int, step: int, size: int, split: str = "train") -> tuple[list[Scene], list[str]]:
    """`size` scenes with their captions."""
    rng = np.random.default_rng([seed, step])
    scenes, texts = zip(*(sample_scene(rng, split) for _ in range(size)), strict=True)
    return list(scenes), list(texts)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1], channels last in memory."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def to_uint8(images: Tensor) -> np.ndarray:
    """Decoder output (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), truncated as the sampler does."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def scene_tensors(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Textured images, flat images (N, 3, H, W), and shape labels (N, H, W)."""
    labels = np.stack([shape_map(s) for s in scenes])
    textured, flat = (to_tensor(render_batch(scenes, flat)) for flat in (False, True))
    return textured, flat, torch.from_numpy(labels).long()
