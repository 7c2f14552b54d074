"""Checks of StageVAR Pick Different inside ComfyUI's own process; `test_variety.py` starts it.

python inside_variety.py COMFYUI PACK      prints one line per check that passed
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def batch(*levels: float, **keys: Any) -> dict[str, Any]:
    """A latent whose pictures are of one grey each, and those; further keys are of the latent."""
    import torch

    grey = torch.tensor(levels)[:, None, None, None]
    images = grey.expand(-1, 8, 8, 3).clone()
    return {"latent": {"samples": grey.expand(-1, 4, 2, 2).clone(), **keys}, "images": images}


def pick(**inputs: Any) -> tuple[dict[str, Any], Any, list[str]]:
    """The latent, the images, and what the node says."""
    from pack.nodes.variety import PickDifferent

    found = PickDifferent.execute(**inputs)
    return (*found.args, found.ui["text"])


def refused(inputs: dict[str, Any], *words: str) -> None:
    """The node fails with a message that has these words."""
    try:
        pick(**inputs)
    except ValueError as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"nothing was refused, expected {words}")


def check_picked() -> None:
    """The same pictures and latents leave, which the node names, and the input stays as it was."""
    inputs = batch(0.5, 0.51, 1.0, 0.49, 0.0)
    latent, images, said = pick(**inputs, count=3)
    assert images[:, 0, 0, 0].tolist() == [0.5, 1.0, 0.0] == latent["samples"][:, 0, 0, 0].tolist()
    assert said == ["3 of 5: 0, 2, 4 (0 is the first, as in Latent From Batch)"]
    assert set(inputs["latent"]) == {"samples"} and len(inputs["latent"]["samples"]) == 5


def check_as_core() -> None:
    """The keys are those of core's Latent From Batch, also of a batch that was picked from before."""
    import torch

    import nodes

    masks = torch.arange(3.0)[:, None, None, None].expand(-1, 1, 2, 2)
    inputs = batch(0.5, 0.51, 1.0, noise_mask=masks, codes="kept")
    latent, _, _ = pick(**inputs, count=2)
    assert latent["batch_index"] == [0, 2] and latent["codes"] == "kept"
    assert latent["noise_mask"][:, 0, 0, 0].tolist() == [0.0, 2.0]
    single = nodes.LatentFromBatch().frombatch(latent, 1, 1)[0]
    assert single["batch_index"] == [2] and single["samples"][0, 0, 0, 0] == 1.0
    later = batch(0.5, 0.51, 1.0, batch_index=[7, 8, 9], noise_mask=masks[:1])
    latent, _, _ = pick(**later, count=2)
    assert latent["batch_index"] == [7, 9] and len(latent["noise_mask"]) == 1
    fewer = batch(0.5, 0.51, 1.0, noise_mask=masks[:2])
    assert pick(**fewer, count=2)[0]["noise_mask"][:, 0, 0, 0].tolist() == [0.0, 0.0]
    odd = batch(0.5, 0.51, 1.0, batch_index=[1])
    assert pick(**odd, count=2)[0]["batch_index"] == [0, 2]


def check_counts() -> None:
    """More than there are is all of them; four without a number; alpha does not count."""
    import torch

    assert pick(**batch(0.1, 0.1), count=9)[2] == ["2 of 2: 0, 1 (0 is the first, as in Latent From Batch)"]
    assert len(pick(**batch(*(n / 10 for n in range(7))))[1]) == 4
    inputs = batch(0.5, 0.5, 0.6)
    alpha = torch.zeros(3, 8, 8, 1)
    alpha[1] = 1.0
    inputs["images"] = torch.cat((inputs["images"], alpha), dim=-1)
    latent, images, _ = pick(**inputs, count=2)
    assert latent["batch_index"] == [0, 2] and images.shape[-1] == 4


def check_sampled() -> None:
    """Pictures of the built-in model: what is picked decodes to the pictures that were picked."""
    import torch
    from pack.nodes.host.files import EMBEDDED
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer
    from pack.nodes.sampling import Sampler

    model, vae = (kind.execute(EMBEDDED).args[0] for kind in (LoadModel, LoadTokenizer))
    clip = LoadTextEncoder.execute(EMBEDDED).args[0]
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    drawn = Sampler.execute(
        model=model, vae=vae, positive=prompt, width=128, height=128, batch_size=4, seed=3
    )
    latent = drawn.args[0]
    images = vae.decode(latent["samples"])
    chosen, shown, _ = pick(latent=latent, images=images, count=2)
    assert chosen["batch_index"][0] == 0 and len(shown) == 2
    assert torch.equal(shown, images[chosen["batch_index"]])
    assert torch.allclose(vae.decode(chosen["samples"]), shown, atol=1e-4)


def check_refusals() -> None:
    """What does not belong together or into an input is named."""
    import torch

    both, three = batch(0.1, 0.2), batch(0.1, 0.2, 0.3)
    refused({**both, "images": three["images"]}, "latent: found a batch of 2 beside 3 images")
    refused({**both, "latent": {"samples": torch.tensor(1.0)}}, "latent: found a batch of 0")
    refused({**both, "latent": both["images"]}, "latent: found a tensor", "expected a latent")
    refused({**both, "images": "all"}, "images: found", "expected an image")
    refused({**both, "images": torch.full((2, 8, 8, 3), torch.nan)}, "images: found NaN")
    for count in (0, 1.5, "many", float("nan"), None, [4]):
        refused({**both, "count": count}, "count")


def main() -> None:
    load_pack(PACK, Path.cwd())
    import torch

    with torch.inference_mode():
        for name, check in (
            ("picked", check_picked),
            ("as core", check_as_core),
            ("counts", check_counts),
            ("sampled", check_sampled),
            ("refusals", check_refusals),
        ):
            check()
            print(f"ok: {name}")


main()
