"""ComfyUI's own VAE nodes on our tokenizer."""

from __future__ import annotations

import pytest
from testbed.comfy_server import ComfyServer, Json, nodes_of, only_node

from tests.support.events import add_node, psnr, saved_images

TILED = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}


@pytest.fixture
def links(prompt: Json) -> tuple[list, list, list]:
    """The links of the shipped workflow to its VAE, its latent and its decoded image."""
    decoder = only_node(prompt, "VAEDecode")
    return prompt[decoder]["inputs"]["vae"], prompt[decoder]["inputs"]["samples"], [decoder, 0]


def save(prompt: Json, image: list) -> str:
    """Adds a node that saves an image; returns its id."""
    return add_node(prompt, "SaveImage", images=image, filename_prefix="vae_test")[0]


def test_tiled_decoding_equals_whole(comfy_server: ComfyServer, prompt: Json, links: tuple) -> None:
    vae, latent, _ = links
    tiled = save(prompt, add_node(prompt, "VAEDecodeTiled", samples=latent, vae=vae, **TILED))
    entry = comfy_server.run(prompt)
    whole = saved_images(comfy_server, entry, nodes_of(prompt, "SaveImage")[0])[0]
    pieces = saved_images(comfy_server, entry, tiled)[0]
    assert pieces.shape == whole.shape
    assert psnr(pieces, whole) > 20


@pytest.mark.parametrize(("encoder", "options"), [("VAEEncode", {}), ("VAEEncodeTiled", TILED)])
def test_encoding_and_decoding_keeps_the_image(
    comfy_server: ComfyServer, prompt: Json, links: tuple, encoder: str, options: Json
) -> None:
    vae, _, image = links
    latent = add_node(prompt, encoder, pixels=image, vae=vae, **options)
    again = save(prompt, add_node(prompt, "VAEDecode", samples=latent, vae=vae))
    entry = comfy_server.run(prompt)
    before = saved_images(comfy_server, entry, nodes_of(prompt, "SaveImage")[0])[0]
    after = saved_images(comfy_server, entry, again)[0]
    assert after.shape == before.shape
    assert psnr(after, before) > 18
