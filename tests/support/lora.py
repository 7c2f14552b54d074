"""LoRA files for tests: random ones, and the same one in the styles in which people keep them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagevar_core.checkpoints import Checkpoint
from stagevar_core.models.infinity import Infinity
from stagevar_core.pipeline import ASSETS

RED = ASSETS / "lora_red.safetensors"
ATTENTION = ("sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj")
# By official name: our name of the weight.
OURS = {
    "sa.mat_qkv": "self_attn.qkv",
    "sa.proj": "self_attn.proj",
    "ca.mat_q": "cross_attn.q",
    "ca.mat_kv": "cross_attn.kv",
    "ca.proj": "cross_attn.proj",
    "ffn.fc1": "ffn.fc1",
    "ffn.fc2": "ffn.fc2",
}
STYLES = ("cloneofsimo", "kohya", "diffusers", "peft", "peft adapter", "nested", "ours")


def checkpoint_of(model: Infinity, source: str = "model.safetensors") -> Checkpoint:
    """What a loader knows of a model, with its weights."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Checkpoint("transformer", model.family, model.config, tensors, source)


def random_lora(
    model: Infinity, *, rank: int = 2, alpha: float = 4.0, layers: Iterable[str] = ATTENTION, seed: int = 0
) -> dict[str, Tensor]:
    """The cloneofsimo form of a LoRA for a model, by the official names of its layers in every block."""
    generator, file = torch.Generator().manual_seed(seed), {}
    for index, block in enumerate(model.blocks):
        for layer in layers:
            out, into = block.get_submodule(OURS[layer]).weight.shape
            name = f"blocks.{index}.{layer}"
            file[f"{name}.lora_down.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
            file[f"{name}.lora_up.weight"] = 0.2 * torch.randn(out, rank, generator=generator)
            file[f"{name}.alpha"] = torch.tensor(alpha)
    return file


def styled(file: dict[str, Tensor], style: str, folder: Path, chunk: int = 1) -> Path:
    """Write a file of the cloneofsimo form in another one; ``chunk``: blocks of a chunk, where they nest."""
    alpha = float(next(value for key, value in file.items() if key.endswith(".alpha")))
    if style.startswith("peft"):
        inner = ".default" if style == "peft adapter" else ""
        halves = {".lora_down.weight": f".lora_A{inner}.weight", ".lora_up.weight": f".lora_B{inner}.weight"}
        written = {
            f"base_model.model.{key.removesuffix(old)}{new}": value
            for old, new in halves.items()
            for key, value in file.items()
            if key.endswith(old)
        }
        path = folder / "adapter_model.safetensors"
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": alpha, "target_modules": list(ATTENTION)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(written, path)
        return path
    path = folder / f"{style}.safetensors"
    save_file({_renamed(key, style, chunk): value for key, value in file.items()}, path)
    return path


def red() -> dict[str, Tensor]:
    """The LoRA that comes with the built-in model."""
    return load_file(RED)


def _renamed(key: str, style: str, chunk: int) -> str:
    layer, part = next(
        (key.removesuffix(end), end)
        for end in (".lora_down.weight", ".lora_up.weight", ".alpha")
        if key.endswith(end)
    )
    _, number, rest = layer.split(".", 2)
    if style == "kohya":
        return f"lora_unet_{layer.replace('.', '_')}{part}"
    if style == "diffusers":
        return f"transformer.{layer}{part.replace('.lora_', '.lora.')}"
    if style == "nested":
        place = f"block_chunks.{int(number) // chunk}._fsdp_wrapped_module.module.{int(number) % chunk}"
        return f"module.{place}.{rest}{part}"
    if style == "ours":
        return f"diffusion_model.blocks.{number}.{OURS[rest]}{part}"
    return key
