"""Checks of StageVAR Vary inside ComfyUI's own process; `test_varying.py` starts it.

python inside_varying.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from checking import refused, run_with

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


class Bench:
    """The built-in model, a run of it, and its picture."""

    def __init__(self) -> None:
        from pack.nodes.host.files import EMBEDDED
        from pack.nodes.load import Load

        self.model, self.vae, self.clip = Load.execute(EMBEDDED).args
        self.text = self.encode("a red circle on a white background")
        self.latent, _ = self.sample()
        self.picture = self.decode(self.latent)

    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def decode(self, latent: dict) -> Any:
        return self.vae.decode(latent["samples"])

    def sample(self, positive: Any = None, **inputs: Any) -> tuple[dict, Any]:
        """The sampler's latent and report."""
        from pack.nodes.sampling import Sampler

        given = {"model": self.model, "vae": self.vae, "positive": positive or self.text, "seed": 5}
        given |= {"width": 128, "height": 128, "batch_size": 1, **inputs}
        return Sampler.execute(**given).args

    def vary(self, **inputs: Any) -> Any:
        """The node's output; of the run where nothing else is said."""
        from pack.nodes.varying import Vary

        given = {} if {"image", "latent"} & set(inputs) else {"latent": self.latent}
        return Vary.execute(**{"model": self.model, "vae": self.vae, **given, **inputs})

    def codes(self, latent: dict) -> list:
        """What each scale added to the first image."""
        from pack.nodes.host.carried import carried

        return [scale.drawn for scale in carried(latent["samples"], self.vae.latent_channels).images[0]]


def check_same(bench: Bench) -> None:
    """Variation 0: the codes of a run bit for bit, the reconstruction of a picture, without any block."""
    import torch
    from pack.nodes.acceleration import Accelerate

    for preset in ("off", "balanced"):
        model = Accelerate.execute(bench.model, preset).args[0]
        drawn, _ = bench.sample(model=model)
        found = bench.vary(latent=drawn, variation=0.0)
        assert "keeps 7 of 7 scales" in found.ui["text"][0] and "same picture" in found.ui["text"][0]
        again, report = bench.sample(model=model, edit=found.args[0], seed=99)
        assert torch.equal(bench.decode(again), bench.decode(drawn)), preset
        assert report["totals"]["flops"] == 0, report["totals"]
    edit = bench.vary(image=bench.picture, variation=0.0).args[0]
    kept, _ = bench.sample(edit=edit)
    stored = bench.vae.decode(bench.vae.encode(bench.picture))
    assert (bench.decode(kept) - stored).abs().max() < 1e-4
    encoded = {"samples": bench.vae.encode(bench.picture)}
    found = bench.vary(latent=encoded, variation=0.0)
    assert "carries no run" in found.ui["text"][1]
    near, _ = bench.sample(edit=found.args[0])
    assert (bench.decode(near) - stored).abs().mean() < 0.02


def check_varied(bench: Bench) -> None:
    """The first scales stay, the others are others; of 1 nothing stays; one's own seed is said."""
    import torch

    for variation, kept in ((0.2, 6), (0.5, 5), (0.75, 3), (0.9, 1), (1.0, 0)):
        found = bench.vary(variation=variation)
        assert found.ui["text"][0].startswith(f"keeps {kept or 'none'} of 7 scales"), found.ui["text"]
        drawn, report = bench.sample(edit=found.args[0], seed=6, width=999, height=64)
        same = [torch.equal(a, b) for a, b in zip(bench.codes(bench.latent), bench.codes(drawn), strict=True)]
        assert same[:kept] == [True] * kept and not all(same[kept:]), (variation, same)
        assert not any("has the seed" in note for note in report["notes"])
    plain, _ = bench.sample(seed=6)
    assert torch.equal(drawn["samples"], plain["samples"])
    again, report = bench.sample(edit=bench.vary().args[0])
    assert torch.equal(bench.decode(again), bench.picture)
    assert any("image 0 (0 is the first) has the seed" in note for note in report["notes"]), report["notes"]
    other, _ = bench.sample(bench.encode("a blue circle on a white background"), edit=bench.vary().args[0])
    assert not torch.equal(bench.decode(other), bench.picture)
    draft, _ = bench.sample(stop_after="semantic")
    short = bench.vary(latent=draft, variation=0.25)
    assert "keeps 3 of 7" in short.ui["text"][0] and "stopped after 3 of 7" in short.ui["text"][1]
    assert torch.equal(bench.decode(bench.sample(edit=short.args[0])[0]), bench.picture)


def check_drafts(bench: Bench) -> None:
    """Variations that stop behind what is kept are finished as the others; before it is said."""
    import torch
    from pack.nodes.continuing import Continue

    edit = bench.vary().args[0]
    whole, _ = bench.sample(edit=edit, seed=6, batch_size=2)
    _, report = bench.sample(edit=edit, seed=6, stop_after="semantic")
    assert any("the edit keeps its part" in note for note in report["notes"]), report["notes"]
    for stop in ("structure", "scale 6"):
        draft, report = bench.sample(edit=edit, seed=6, batch_size=2, stop_after=stop)
        assert not any("the edit keeps its part" in note for note in report["notes"]), report["notes"]
        for latent in (draft, {"samples": draft["samples"]}):
            found = Continue.execute(model=bench.model, vae=bench.vae, positive=bench.text, latent=latent)
            assert torch.allclose(bench.decode(found.args[0]), bench.decode(whole), atol=1e-5), stop


def check_sixteen(bench: Bench) -> None:
    """Sixteen variations that keep the structure stage: sixteen late stages and one early one."""
    for given in ({"latent": bench.latent}, {"image": bench.picture}):
        edit = bench.vary(variation=0.5, **given).args[0]
        _, many = bench.sample(edit=edit, batch_size=16)
        _, one = bench.sample(edit=edit)
        assert [scale["rows"] for scale in many["scales"]] == [2] * 5 + [32] * 2
        cost = [sum(scale["flops"].values()) for scale in one["scales"]]
        early, late = sum(cost[:5]), sum(cost[5:])
        assert many["totals"]["flops"] <= (early + 16 * late) * 1.001
        assert many["totals"]["flops"] < 0.95 * 16 * one["totals"]["flops"]


def check_batches(bench: Bench) -> None:
    """Pictures in turn, as prompts; image n is the one of seed + n; too many are said."""
    import torch

    two, _ = bench.sample(batch_size=2)
    edit = bench.vary(latent=two).args[0]
    found, _ = bench.sample(edit=edit, batch_size=3, seed=20)
    for index in range(3):
        part = {"samples": two["samples"][index % 2, None]}
        alone, _ = bench.sample(edit=bench.vary(latent=part).args[0], seed=20 + index)
        assert (bench.decode(alone) - bench.decode(found)[index, None]).abs().max() < 0.02, index
    _, report = bench.sample(edit=edit)
    assert any("2 pictures for 1 images" in note for note in report["notes"]), report["notes"]
    pictures = torch.cat((bench.picture, 1 - bench.picture))
    found, _ = bench.sample(edit=bench.vary(image=pictures).args[0], batch_size=3)
    assert len(found["samples"]) == 3


def check_sizes(bench: Bench) -> None:
    """Pictures of any size, one pixel among them; alpha is dropped and said."""
    import torch

    for shape in ((1, 1, 1, 3), (1, 1, 300, 3), (2, 90, 200, 4), (1, 512, 512, 3)):
        found = bench.vary(image=torch.rand(shape))
        assert any("transparency" in line for line in found.ui["text"]) == (shape[3] == 4)
        latent, _ = bench.sample(edit=found.args[0], batch_size=2)
        assert bench.decode(latent).isfinite().all() and len(latent["samples"]) == 2


def check_families(bench: Bench) -> None:
    """VAR, whose codebook belongs to the tokenizer."""
    import torch
    from pack.nodes.labels import ClassLabel
    from pack.nodes.loaders import LoadModel, LoadTokenizer

    var, vq = LoadModel.execute("tiny_var.safetensors"), LoadTokenizer.execute("tiny_vq.safetensors")
    own = {"model": var.args[0], "vae": vq.args[0]}
    label, side = ClassLabel.execute("3").args[0], {"width": 256, "height": 256}
    drawn, _ = bench.sample(label, **own, **side)
    same, _ = bench.sample(label, edit=bench.vary(latent=drawn, variation=0.0, **own).args[0], seed=1, **own)
    assert torch.equal(drawn["samples"][:, :4], same["samples"][:, :4])
    varied, report = bench.sample(
        label, edit=bench.vary(latent=drawn, **own).args[0], batch_size=4, seed=1, **own
    )
    assert [scale["rows"] for scale in report["scales"]] == [2] * 7 + [8] * 3
    refused(lambda: bench.vary(latent=drawn), "latent: ", "has shape", "decodes (batch, 16")
    refused(lambda: bench.vary(**own), "latent: ", "tiny_vq")
    bench.vary(image=bench.picture, **own)


def check_refusals(bench: Bench) -> None:
    """What does not belong is one sentence with the input's name."""
    from dataclasses import replace

    import torch
    from pack.nodes.host.carried import carried, carry
    from pack.nodes.host.files import EDITOR
    from pack.nodes.loaders import LoadModel

    refused(lambda: bench.vary(image=bench.picture, latent=bench.latent), "image, latent: both")
    refused(lambda: bench.vary(image=None, latent=None), "image, latent: neither")
    refused(lambda: bench.vary(latent={"samples": torch.zeros(1, 4, 16, 16)}), "latent: ", "(1, 4, 16, 16)")
    refused(
        lambda: bench.vary(latent={"samples": torch.zeros(1, 16, 5, 16)}), "latent: ", "128x40", "128x128"
    )
    refused(lambda: bench.vary(latent={"samples": torch.zeros(1, 16, 1, 9, 9)}), "latent: ")
    refused(lambda: bench.vary(latent=7), "latent: found 7")
    refused(lambda: bench.vary(image="a.png"), "image: ", "Load Image")
    refused(lambda: bench.vary(image=torch.full((1, 8, 8, 3), torch.nan)), "image: found NaN")
    for value in (-0.1, 1.01, float("nan"), "much", None):
        refused(lambda value=value: bench.vary(variation=value), "variation")
    refused(lambda: bench.vary(model=LoadModel.execute(EDITOR).args[0]), "model: ", "edits pictures")
    refused(lambda: bench.vary(vae=3), "vae: ")
    state = carried(bench.latent["samples"], 16)

    def of(state: Any) -> dict:
        return {"samples": carry(bench.latent["samples"][:, :16], state)}

    other = replace(state, tokenizer="other.safetensors", model="other model")
    refused(lambda: bench.vary(latent=of(other)), "latent: ", "other model", "other.safetensors", "embedded/")
    bits = tuple(scale._replace(drawn=scale.drawn[:, :8]) for scale in state.images[0])
    refused(lambda: bench.vary(latent=of(replace(state, images=(bits,)))), "latent: ", "codes of scale 0")
    damaged = bench.latent["samples"].clone()
    damaged[:, 17:, 3] = 7
    refused(lambda: bench.vary(latent={"samples": damaged}), "latent: ", "damaged")


run_with(Bench, globals(), PACK, MODELS)
