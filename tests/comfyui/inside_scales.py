"""Checks of StageVAR Scales to Images and of previews inside ComfyUI's process; `test_scales.py` starts it.

python inside_scales.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from checking import refused, run_with

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


class Bench:
    """The built-in model and a run of it."""

    def __init__(self) -> None:
        from pack.nodes.host.files import EMBEDDED
        from pack.nodes.load import Load

        self.model, self.vae, self.clip = Load.execute(EMBEDDED).args
        words = self.clip.tokenize("a red circle on a white background")
        self.text = self.clip.encode_from_tokens_scheduled(words)
        self.latent = self.sample()

    def sample(self, positive: Any = None, **inputs: Any) -> dict:
        """The sampler's latent."""
        from pack.nodes.sampling import Sampler

        given = {"model": self.model, "vae": self.vae, "positive": positive or self.text, "seed": 5}
        given |= {"width": 128, "height": 128, "batch_size": 1, **inputs}
        return Sampler.execute(**given).args[0]

    def scales(self, **inputs: Any) -> tuple[Any, str]:
        """The pictures, and the line on the node."""
        from pack.nodes.scales import Scales

        found = Scales.execute(**{"latent": self.latent, "vae": self.vae, **inputs})
        return found.args[0], found.ui["text"][0]


def check_pictures(bench: Bench) -> None:
    """One per scale in the size of the picture; the last one is the picture, in colours or to the bit."""
    import torch

    whole = bench.vae.decode(bench.latent["samples"])
    for decoding, near in (("fast", 0.15), ("full", 1e-5)):
        images, line = bench.scales(decoding=decoding)
        assert line == "7 pictures" and images.shape == (7, 128, 128, 3) and images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        away = [float((image - whole[0]).abs().mean()) for image in images]
        assert away[-1] < near and away[-1] < away[0], (decoding, away)


def check_skipped(bench: Bench) -> None:
    """What a preset skipped is left out; a run that stopped has the scales it went over."""
    from pack.nodes.acceleration import Accelerate
    from pack.nodes.host.carried import carried, carry

    fast = bench.sample(model=Accelerate.execute(bench.model, "turbo").args[0])
    images, line = bench.scales(latent=fast)
    assert f"{len(images)} pictures; {7 - len(images)} of 7 scales were skipped" in line and len(images) < 7
    state = carried(bench.latent["samples"], 16).first(3)
    small = carry(state.latents(bench.vae.quantizer())[-1][..., :4, :4], state)
    images, line = bench.scales(latent={"samples": small})
    assert line == "3 pictures" and images.shape == (3, 128, 128, 3)


def check_batches(bench: Bench) -> None:
    """One image after the other."""
    import torch

    two = bench.sample(batch_size=2)
    images, line = bench.scales(latent=two)
    assert line == "7 pictures of each of 2 images" and len(images) == 14
    second, _ = bench.scales(latent={"samples": two["samples"][1:]})
    assert torch.allclose(images[7:], second, atol=1e-5)


def check_families(bench: Bench) -> None:
    """VAR, whose codebook belongs to the tokenizer."""
    from pack.nodes.labels import ClassLabel
    from pack.nodes.loaders import LoadModel, LoadTokenizer

    var, vq = LoadModel.execute("tiny_var.safetensors"), LoadTokenizer.execute("tiny_vq.safetensors")
    var, vq = var.args[0], vq.args[0]
    drawn = bench.sample(ClassLabel.execute("3").args[0], model=var, vae=vq, width=256, height=256)
    for decoding in ("fast", "full"):
        images, line = bench.scales(latent=drawn, vae=vq, decoding=decoding)
        assert line == "10 pictures" and images.shape == (10, 256, 256, 3)
    refused(lambda: bench.scales(vae=vq), "latent: ", "tiny_vq")
    refused(lambda: bench.scales(latent=drawn), "latent: ", "has shape")


def check_refusals(bench: Bench) -> None:
    """What does not belong is one sentence with the input's name."""
    from dataclasses import replace

    import torch
    from pack.nodes.host.carried import carried, carry

    refused(lambda: bench.scales(latent={"samples": bench.latent["samples"][:, :16]}), "carries no run")
    refused(lambda: bench.scales(latent={"samples": bench.latent["samples"] * 0.5}), "carries no run")
    refused(lambda: bench.scales(latent={"samples": torch.zeros(1, 4, 16, 16)}), "latent: ", "(1, 4, 16, 16)")
    refused(lambda: bench.scales(latent=3), "latent: found 3")
    refused(lambda: bench.scales(vae="vae"), "vae: ")
    for value in ("slow", None, 1):
        refused(lambda value=value: bench.scales(decoding=value), "decoding")
    state = replace(carried(bench.latent["samples"], 16), tokenizer="other.safetensors")
    other = {"samples": carry(bench.latent["samples"][:, :16], state)}
    refused(lambda: bench.scales(latent=other), "vae: ", "other.safetensors", "embedded/")


def check_previews(bench: Bench) -> None:
    """As the user chose: none, colours for `auto` and `latent2rgb`, the decoder for `taesd`; all in one size.

    A tokenizer whose encoder is damaged costs the previews, not the picture.
    """
    import numpy as np
    import torch
    from comfy.cli_args import LatentPreviewMethod, args
    from pack.nodes.host import monitor

    whole = bench.vae.decode(bench.latent["samples"])[0].numpy()
    shown: list[Any] = []
    decoded: list[Any] = []

    class Bar:
        def __init__(self, total: int) -> None: ...

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            shown.extend([] if preview is None else [preview])

    module = bench.vae.first_stage_model
    real, before, preview = monitor.comfy.utils.ProgressBar, args.preview_method, module.preview
    monitor.comfy.utils.ProgressBar = Bar
    module.preview = lambda latent: decoded.append(latent) or preview(latent)
    try:
        for method, count, by_decoder in (
            ("none", 0, 0),
            ("auto", 7, 0),
            ("latent2rgb", 7, 0),
            ("taesd", 7, 7),
        ):
            shown.clear(), decoded.clear()
            args.preview_method = LatentPreviewMethod(method)
            latent = bench.sample()
            assert torch.equal(latent["samples"], bench.latent["samples"])
            assert (len(shown), len(decoded)) == (count, by_decoder), method
            assert all(kind == "JPEG" and image.size == (128, 128) for kind, image, _ in shown)
            away = [np.abs(np.asarray(image) / 255 - whole).mean() for _, image, _ in shown]
            assert not away or away[-1] < away[0] and away[-1] < 0.15, (method, away)
        args.preview_method = LatentPreviewMethod.Auto
        features, bench.vae.features, bench.vae._colours = bench.vae.features, broken, None
        shown.clear()
        assert torch.equal(bench.sample()["samples"], bench.latent["samples"]) and not shown
        bench.vae.features = features
    finally:
        monitor.comfy.utils.ProgressBar, args.preview_method, module.preview = real, before, preview


def broken(pictures: Any) -> Any:
    """What a damaged encoder says."""
    raise ValueError("vae: the encoder gave NaN")


run_with(Bench, globals(), PACK, MODELS)
