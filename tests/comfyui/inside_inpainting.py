"""Checks of in-painting by core latents inside ComfyUI's own process; `test_inpainting.py` starts it.

python inside_inpainting.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from checking import refused, run_with

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
SCENE = "a striped red ring to the left of a blue cross on a white background"
OTHER = "a striped red ring to the left of a green triangle on a white background"
SETTINGS = {"cfg": 2.0, "temperature": 0.7, "width": 128, "height": 128}


class Bench:
    """The built-in model, four pictures that it drew, and a mask over what they show at the right."""

    def __init__(self) -> None:
        import torch
        from pack.nodes.load import Load

        self.model, self.vae, self.clip = Load.execute().args
        self.scene, self.other = self.text(SCENE), self.text(OTHER)
        self.pictures = self.vae.decode(self.latent(self.scene, seed=100, batch_size=4)["samples"])
        self.mask = torch.zeros(1, 128, 128)
        self.mask[:, 16:112, 66:] = 1

    def text(self, words: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(words))

    def sample(self, positive: list | None = None, **inputs: Any) -> Any:
        """What one execution of the sampler gives."""
        from pack.nodes.sampling import Sampler

        model, vae = inputs.pop("model", self.model), inputs.pop("vae", self.vae)
        return Sampler.execute(model, vae, positive or self.other, **{"seed": 7, **SETTINGS, **inputs})

    def latent(self, *arguments: Any, **inputs: Any) -> dict:
        return self.sample(*arguments, **inputs).args[0]

    def said(self, **inputs: Any) -> list[str]:
        return self.sample(**inputs).ui["text"]

    def encoded(self, pictures: Any = None, mask: Any = None) -> dict:
        """The latent of VAE Encode, and with a mask of Set Latent Noise Mask."""
        import nodes

        (latent,) = nodes.VAEEncode().encode(self.vae, self.pictures if pictures is None else pictures)
        return latent if mask is None else nodes.SetLatentNoiseMask().set_mask(latent, mask)[0]

    def start(self, latent: object, batch: int = 1) -> Any:
        """What the sampler takes from a latent."""
        from pack.nodes.host.inpainting import latent_start
        from pack.nodes.host.pairing import checked_pair

        return latent_start(checked_pair(self.model, self.vae), latent, batch, 64)


def picture_of(latent: Any, channels: int = 16) -> Any:
    """The tokenizer's channels, without what the run left behind them."""
    return latent["samples"][:, :channels]


def bytes_of(image: Any) -> Any:
    return (image.clamp(0, 1) * 255).round().byte().numpy()


def paste(*arguments: Any, **inputs: Any) -> Any:
    from pack.nodes.paste_back import PasteBack

    return PasteBack.execute(*arguments, **inputs).args[0]


def shown(bench: Bench, image: Any, mask: Any) -> tuple[Any, Any]:
    from pack.nodes.mask_preview import MaskPreview

    return MaskPreview.execute(bench.model, image, mask).args


def check_read_back(bench: Bench) -> None:
    """What was to be kept reads as before, the masked part as it should be, by both of core's encoders."""
    from pack.stagevar_core.scenes.scorer import read, score

    import nodes

    latents = (
        bench.encoded(mask=bench.mask),
        nodes.VAEEncodeForInpaint().encode(bench.vae, bench.pictures, bench.mask)[0],
    )
    tokens, _ = shown(bench, bench.pictures, bench.mask)
    for latent in latents:
        drawn = bench.vae.decode(bench.latent(latent=latent)["samples"])
        pasted = paste(bench.pictures, drawn, tokens)
        right = 0
        for before, after in zip(bytes_of(bench.pictures), bytes_of(pasted), strict=True):
            one, other = (min(read(image).objects, key=lambda found: found.x) for image in (before, after))
            assert (one.shape, one.colour, one.pattern) == (other.shape, other.colour, other.pattern)
            assert abs(one.x - other.x) < 1 and abs(one.y - other.y) < 1
            right += score(OTHER, after).strict
        assert right >= 3, right
        left = (drawn - bench.pictures)[:, :, :60]
        assert left.square().mean() < 2e-3 < 0.02 < (drawn - bench.pictures)[:, 40:90, 75:].square().mean()


def check_same_machinery(bench: Bench) -> None:
    """A latent that holds the encoder's features gives the codes and masks of StageVAR Inpaint."""
    import torch
    from pack.nodes.editing import EditNode

    edit = EditNode.execute(bench.model, bench.vae, bench.pictures, bench.mask).args[0]
    features = {"samples": bench.vae.features(bench.pictures), "noise_mask": bench.mask}
    start = bench.start(features)
    for one, other in ((edit.codes, start.edit.codes), (edit.masks, start.edit.masks)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert (edit.size, edit.schedule, edit.notes) == (start.size, start.edit.schedule, start.edit.notes)
    by_latent, by_edit = bench.latent(latent=features), bench.latent(edit=edit, batch_size=4)
    assert torch.equal(by_latent["samples"], by_edit["samples"]) and set(by_latent) == {"samples"}
    stored = bench.encoded()
    again = bench.vae.decode(bench.latent(latent={**stored, "noise_mask": torch.zeros(1, 8, 8)})["samples"])
    assert (again - bench.vae.decode(stored["samples"])).square().mean() < 1e-3


def check_sizes(bench: Bench) -> None:
    """Without a mask a latent is a size: core's empty ones of every kind, and our own."""
    import torch

    import nodes

    (empty,) = nodes.EmptyLatentImage().generate(128, 128, 2)
    assert bench.start(empty)[:2] == ((128, 128), 2)
    assert bench.start({"samples": torch.zeros(1, 16, 20, 30)}).size == (160, 240)
    told = {"samples": torch.zeros(1, 128, 8, 9), "downscale_ratio_spacial": 16}
    assert bench.start(told).size == (128, 144)
    plain = bench.latent(batch_size=2)["samples"]
    assert torch.equal(bench.latent(latent=empty)["samples"], plain)
    lines = bench.said(latent=empty, width=1024, height=64)
    assert lines[0].endswith("2 images of 128 x 128") and "width and height are set aside" in str(lines)
    assert len(bench.said(latent=empty)) == 1
    own = bench.encoded(bench.pictures[:1])
    found = bench.sample(latent=own)
    assert torch.equal(found.args[0]["samples"], plain[:1]) and "without a noise mask" in found.ui["text"][1]
    lines = bench.said(latent={**empty, "noise_mask": bench.mask})
    assert "the latent is empty" in str(lines), lines
    large = bench.said(latent={"samples": torch.zeros(1, 4, 100, 50)})
    assert "128 x 128 (nearest trained size to 400 x 800)" in large[0], large


def check_batches(bench: Bench) -> None:
    """Every picture of a latent is made; fewer masks repeat, a larger batch takes the pictures in turn."""
    import torch

    part = {"samples": bench.encoded()["samples"][:2]}
    rows = torch.cat([bench.mask, torch.zeros(1, 128, 128)])
    both = bench.sample(latent={**part, "noise_mask": rows[:, None]})
    assert "the mask selects nothing of picture 1 (0 is the first)" in str(both.ui["text"])
    four = bench.sample(latent={**part, "noise_mask": rows}, batch_size=4)
    assert len(four.args[0]["samples"]) == 4
    assert (picture_of(four.args[0])[:2] - picture_of(both.args[0])).abs().max() < 1e-3
    assert (picture_of(four.args[0])[3] - picture_of(both.args[0])[1]).abs().max() < 1e-3
    alone = bench.latent(latent={"samples": part["samples"][1:], "noise_mask": bench.mask}, seed=8)
    one = bench.latent(latent={**part, "noise_mask": bench.mask})
    assert (picture_of(alone)[0] - picture_of(one)[1]).abs().max() < 1e-3
    lines = bench.said(latent=bench.encoded(mask=bench.mask), batch_size=3)
    assert "4 images of" in lines[0] and "batch_size 3 is set aside" in str(lines), lines
    refused(lambda: bench.start({"samples": torch.zeros(65, 4, 16, 16)}), "latent: found 65", "up to 64")


def check_masks(bench: Bench) -> None:
    """Masks of any size and number of dimensions; nothing, everything and soft ones."""
    import torch
    import torch.nn.functional as F

    picture = bench.encoded(bench.pictures[:1])
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 64:112] = 1
    expected = bench.start({**picture, "noise_mask": mask}).edit.masks
    for size in (16, 32, 512):
        other = F.interpolate(mask[None], size=(size, size), mode="area")
        for shape in ((1, 1, size, size), (1, size, size), (size, size), (1, 1, 1, size, size)):
            found = bench.start({**picture, "noise_mask": other.reshape(shape)}).edit
            assert torch.equal(found.masks[-1], expected[-1]) and not found.notes, (size, shape)
    soft = bench.start({**picture, "noise_mask": mask * 0.6}).edit.masks
    assert torch.equal(soft[-1], expected[-1])
    assert bench.start({**picture, "noise_mask": mask.half()}).edit.masks[-1].equal(expected[-1])
    nothing, everything = torch.zeros(1, 64, 64), torch.ones(1, 3, 5)
    kept = bench.sample(latent={**picture, "noise_mask": nothing})
    assert "the mask selects nothing; the picture stays as it is" in kept.ui["text"]
    assert (bench.vae.decode(kept.args[0]["samples"]) - bench.pictures[:1]).abs().mean() < 0.02
    anew = bench.sample(latent={**picture, "noise_mask": everything})
    assert "the mask selects everything; the picture is drawn anew, all but its tone" in anew.ui["text"]


def check_other_pictures(bench: Bench) -> None:
    """Sizes that no model makes, alpha, and pictures that are too small for a tokenizer."""
    import torch

    import nodes

    for shape in ((1, 200, 200, 3), (1, 90, 260, 4), (2, 8, 8, 3), (1, 700, 130, 3)):
        image, mask = torch.rand(shape), torch.zeros(1, *shape[1:3])
        mask[:, :, : shape[2] // 2] = 1
        found = bench.sample(latent=bench.encoded(image, mask))
        assert picture_of(found.args[0]).shape == (shape[0], 16, 16, 16)
        assert "no size of the model" in str(found.ui["text"])
        drawn = bench.vae.decode(found.args[0]["samples"])
        tokens, preview = shown(bench, image, mask)
        pasted = paste(image, drawn, tokens, feather=0)
        assert tokens.shape == image.shape[:3] and len(preview) == 2 * len(image)
        assert torch.equal(pasted[tokens == 0], image[..., :3][tokens == 0])
        assert (pasted - image[..., :3]).abs().amax(-1)[tokens == 1].mean() > 0.05
    refused(lambda: bench.encoded(torch.rand(1, 1, 1, 3)), "pixels: the image is 1x1", "larger image")
    tokens, preview = shown(bench, torch.rand(1, 1, 1, 3), torch.ones(1, 1, 1))
    assert tokens.shape == (1, 1, 1) and preview.shape == (2, 1, 1, 3)
    (pads, mask) = nodes.ImagePadForOutpaint().expand_image(bench.pictures[:1, :, :64], 0, 0, 64, 0, 0)
    drawn = bench.vae.decode(bench.latent(latent=bench.encoded(pads, mask))["samples"])
    tokens, _ = shown(bench, pads, mask)
    pasted = paste(pads, drawn, tokens, feather=4)
    assert torch.equal(pasted[:, :, :60], bench.pictures[:1, :, :60])
    assert (pasted[:, :, 64:] - 0.5).abs().mean() > 0.2, "the margin stayed grey"


def check_families(bench: Bench) -> None:
    """A codebook, whose quantizer has weights, and tokens of a class."""
    import torch
    from pack.nodes.labels import ClassLabel
    from pack.nodes.loaders import LoadModel, LoadTokenizer

    model = LoadModel.execute("tiny_var.safetensors").args[0]
    vae = LoadTokenizer.execute("tiny_vq.safetensors").args[0]
    label = ClassLabel.execute(label="3").args[0]
    side = model.model.checkpoint.trained.image_size(model.model.checkpoint.trained.snap(64, 64))[0]
    image = torch.rand(1, side, side, 3)
    mask = torch.zeros(1, side, side)
    mask[:, :, side // 2 :] = 1
    features = vae.features(image)
    given = {"model": model, "vae": vae, "cfg": 1.0}
    nothing = {"samples": features, "noise_mask": torch.zeros(1, 4, 4)}
    kept = picture_of(bench.latent(label, latent=nothing, **given), 4)
    assert torch.allclose(kept, vae.encode(image).to(kept), atol=1e-4)
    drawn = picture_of(bench.latent(label, latent={"samples": features, "noise_mask": mask}, **given), 4)
    assert drawn.shape == kept.shape and not torch.allclose(drawn, kept)
    wrong = bench.encoded(bench.pictures[:1], bench.mask)
    refused(lambda: bench.sample(label, latent=wrong, **given), "latent: found 16 channels", "has 4")


def check_runs(bench: Bench) -> None:
    """Drafts count as what becomes of them; runs that other nodes mixed or turned are pictures still."""
    import torch

    import nodes

    draft = bench.latent(stop_after="scale 3")
    start = bench.start(draft)
    assert start.size == (128, 128) and start.edit is None
    masked = bench.start(nodes.SetLatentNoiseMask().set_mask(draft, bench.mask)[0])
    assert masked.size == masked.edit.size == (128, 128)
    assert any("a draft: its picture was scaled to 128 x 128" in note for note in masked.edit.notes)
    left, right = bench.latent(seed=1), bench.latent(seed=2)
    mixed = nodes.LatentComposite().composite(left, right, 64, 0)[0]
    seam = bench.start(nodes.SetLatentNoiseMask().set_mask(mixed, bench.mask)[0])
    assert seam.edit is not None and seam.size == (128, 128)
    cut = nodes.LatentCrop().crop(left, 64, 64, 0, 0)[0]
    assert bench.start(nodes.SetLatentNoiseMask().set_mask(cut, bench.mask)[0]).edit is not None
    assert torch.equal(bench.vae.shown(-left["samples"]), -picture_of(left))


def check_preview(bench: Bench) -> None:
    """The preview is the mask of the run, and what lies over the picture is only where tokens are drawn."""
    import torch

    mask = torch.zeros(1, 128, 128)
    mask[:, 20:105, 66:122] = 1
    edit = bench.start(bench.encoded(mask=mask)).edit
    tokens, preview = shown(bench, bench.pictures, mask)
    drawn = (~edit.masks[-1]).float().repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(tokens, drawn.expand(4, -1, -1)) and preview.shape == (8, 128, 128, 3)
    changed = (preview[:4] - bench.pictures).abs().amax(-1) > 0
    assert torch.equal(changed, tokens.bool())
    early = (preview[4:] - bench.pictures).abs().amax(-1) > 0
    assert early.any() and not torch.equal(early, changed)
    refused(lambda: shown(bench, bench.pictures, torch.full((1, 4, 4), torch.nan)), "mask: found NaN")
    refused(lambda: shown(bench, "a.png", bench.mask), "image: found")


def check_paste(bench: Bench) -> None:
    """Drawn on the mask, the original beyond the seam, falling between; batches and sizes adapt."""
    import torch

    before, after = torch.zeros(1, 64, 64, 3), torch.ones(1, 64, 64, 4)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :20] = 1
    row = paste(before, after, mask, feather=8)[0, 30, :, 0]
    assert (row[:20] == 1).all() and (row[28:] == 0).all() and (row[20:28].diff() < 0).all()
    hard = paste(before, after, mask, feather=0)[0, 30, :, 0]
    assert (hard[:20] == 1).all() and (hard[20:] == 0).all()
    soft = paste(before, after, mask * 0.3, feather=8)
    assert torch.allclose(soft[..., 0], mask * 0.3)
    many = paste(before, after.repeat(3, 1, 1, 1), mask[0], feather=8)
    assert torch.equal(many, paste(before, after, mask, feather=8).repeat(3, 1, 1, 1))
    noise = torch.rand(1, 96, 64, 3)
    wide = paste(noise, after, torch.ones(1, 96, 64))
    assert (wide[:, 16:80] == 1).all() and torch.equal(wide[:, :16], noise[:, :16])
    for name, value in (("feather", -1), ("feather", 513), ("feather", "much")):
        refused(lambda name=name, value=value: paste(before, after, mask, **{name: value}), name)
    refused(lambda: paste(before, torch.full_like(after, torch.nan), mask), "drawn: found NaN")


def check_refusals(bench: Bench) -> None:
    """What does not belong is one sentence with both sides."""
    import torch
    from pack.nodes.editing import EditNode

    good = bench.encoded(mask=bench.mask)
    edit = EditNode.execute(bench.model, bench.vae, bench.pictures, bench.mask).args[0]
    refused(lambda: bench.sample(latent=good, edit=edit), "edit and latent", "connect one of them")
    samples = good["samples"]
    for masked in ({}, {"noise_mask": bench.mask}):
        other = {"samples": torch.rand(1, 4, 16, 16), **masked}
        refused(lambda other=other: bench.sample(latent=other), "latent: found 4 channels", "has 16")
    for wrong in (samples[:, :, None], samples[0], samples[:0], samples.to(torch.complex64)):
        refused(lambda wrong=wrong: bench.sample(latent={"samples": wrong}), "latent: found samples", "batch")
    broken = samples.clone()
    broken[0, 0, 0, 0] = torch.inf
    refused(lambda: bench.sample(latent={"samples": broken}), "latent: ", "NaN or infinity")
    for mask in (torch.full((1, 9, 9), torch.nan), "mask", torch.zeros(0, 1, 4, 4), torch.zeros(7)):
        refused(lambda mask=mask: bench.sample(latent={**good, "noise_mask": mask}), "noise_mask")
    for value in ("latent", 7, [], {"samples": "x"}):
        refused(lambda value=value: bench.sample(latent=value), "latent: found")
    empty = {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": "eight"}
    refused(lambda: bench.sample(latent=empty), "downscale_ratio_spacial", "eight")
    refused(
        lambda: bench.sample(latent={"samples": torch.zeros(1, 4, 1, 9000)}), "latent: its width is 72000"
    )


run_with(Bench, globals(), PACK, MODELS)
