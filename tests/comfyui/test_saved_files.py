"""Files that ComfyUI's own nodes write of our models: loaded again, and their latents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from testbed.comfy_server import ComfyServer, Json, nodes_of, only_node

from stagevar_core.checkpoints import build, prepare, read
from stagevar_core.pipeline import EMBEDDED
from tests.support.events import add_node, saved_images

PARTS = {"text_encoder": "text_encoders", "tokenizer": "vae"}
LOADERS = {"StageVARLoadTextEncoder": "text_encoder_name", "StageVARLoadTokenizer": "vae_name"}


@pytest.fixture
def saved(comfy_server: ComfyServer, prompt: Json) -> dict[str, Path]:
    """The files of CLIPSave and VAESave of the built-in model, put where the loaders find them."""
    clip, vae = (only_node(prompt, loader) for loader in LOADERS)
    nodes = {name: prompt[name] for name in (clip, vae)}
    add_node(nodes, "CLIPSave", clip=[clip, 0], filename_prefix="saved_text_encoder")
    add_node(nodes, "VAESave", vae=[vae, 0], filename_prefix="saved_tokenizer")
    comfy_server.run(nodes)
    found = {}
    for part, folder in PARTS.items():
        written = next((comfy_server.base / "output").glob(f"saved_{part}*.safetensors"))
        found[part] = comfy_server.base / "models" / folder / f"saved_{part}.safetensors"
        found[part].parent.mkdir(parents=True, exist_ok=True)
        shutil.move(written, found[part])
    return found


def test_saved_models_load_again(comfy_server: ComfyServer, prompt: Json, saved: dict[str, Path]) -> None:
    for part, path in saved.items():
        again, first = prepare(*read(path), kind=part), prepare(*read(EMBEDDED[part]), kind=part)
        assert (again.config, again.trained, again.tokenizer_json) == (
            first.config,
            first.trained,
            first.tokenizer_json,
        )
        assert again.tensors.keys() == first.tensors.keys() and not again.notes
        for name, tensor in first.tensors.items():
            assert torch.equal(again.tensors[name].float(), tensor.float()), name
    before = saved_images(comfy_server, comfy_server.run(prompt), nodes_of(prompt, "SaveImage")[0])[0]
    for (loader, field), part in zip(LOADERS.items(), PARTS, strict=True):
        prompt[only_node(prompt, loader)]["inputs"][field] = saved[part].name
    after = saved_images(comfy_server, comfy_server.run(prompt), nodes_of(prompt, "SaveImage")[0])[0]
    assert (before == after).all()


def test_encoding_quantizes_the_trained_size_alone(comfy_server: ComfyServer, prompt: Json) -> None:
    vae = only_node(prompt, "StageVARLoadTokenizer")
    nodes = {vae: prompt[vae]}
    for side in (128, 256):
        image = add_node(nodes, "EmptyImage", width=side, height=side, batch_size=1, color=8421504)
        latent = add_node(nodes, "VAEEncode", pixels=image, vae=[vae, 0])
        add_node(nodes, "SaveLatent", samples=latent, filename_prefix=f"encoded_{side}")
    comfy_server.run(nodes)
    checkpoint = prepare(*read(EMBEDDED["tokenizer"]))
    assert checkpoint.trained is not None
    schedule = checkpoint.trained.snap(128, 128)
    tokenizer = build(checkpoint)
    for side, quantized in ((128, True), (256, False)):
        path = next((comfy_server.base / "output").glob(f"encoded_{side}*.latent"))
        with torch.inference_mode():
            features = tokenizer.encode(torch.full((1, 3, side, side), 8421504 % 256 / 255 * 2 - 1))
            expected = tokenizer.quantizer().encode(features, schedule)[1] if quantized else features
        near = (load_file(path)["latent_tensor"] - expected).abs() < 1e-3
        assert near.float().mean() > 0.98  # a code near its border may flip
    assert "256x256 is no size of 'embedded/StageVAR-scenes (built in)'" in comfy_server.log_text()
