"""Checks of StageVAR Change Words inside ComfyUI's own process; `test_rewording.py` starts it.

python inside_rewording.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from checking import refused, run_with

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
BEFORE, AFTER = "a red circle on a white background", "a blue circle on a white background"


class Bench:
    """The built-in model, a picture that it drew, and the prompts before and after."""

    def __init__(self) -> None:
        from pack.nodes.host.files import EMBEDDED
        from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

        self.model, self.vae = (kind.execute(EMBEDDED).args[0] for kind in (LoadModel, LoadTokenizer))
        self.clip = LoadTextEncoder.execute(EMBEDDED).args[0]
        self.before, self.after = self.encode(BEFORE), self.encode(AFTER)
        self.picture = self.vae.decode(self.sample(self.before)[0])

    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, positive: list, **inputs: Any) -> tuple[Any, Any]:
        """The sampler's latent and report."""
        from pack.nodes.sampling import Sampler

        settings = {"seed": 5, "width": 128, "height": 128, "batch_size": 1, "vae": self.vae, **inputs}
        latent, report = Sampler.execute(
            model=settings.pop("model", self.model), positive=positive, **settings
        ).args
        return latent["samples"][:, : self.vae.latent_channels], report

    def edit(self, **inputs: Any) -> Any:
        from pack.nodes.rewording import ChangeWords

        given = {"model": self.model, "vae": self.vae, "image": self.picture, "prompt": self.before, **inputs}
        return ChangeWords.execute(**given).args[0]


def check_kept(bench: Bench) -> None:
    """The same prompt keeps the codes of the picture, under every preset, whatever size is asked for."""
    import torch
    from pack.nodes.acceleration import Accelerate

    edit = bench.edit()
    stored = bench.vae.encode(bench.picture)
    for preset in ("off", "balanced", "paper"):
        model = Accelerate.execute(bench.model, preset).args[0]
        kept, report = bench.sample(bench.before, edit=edit, model=model, width=900, height=64)
        assert torch.allclose(kept, stored.to(kept), atol=1e-5), preset
        assert report["policy"] == preset
    batch, _ = bench.sample(bench.before, edit=edit, batch_size=2)
    assert torch.allclose(batch[1], stored.to(batch)[0], atol=1e-5)


def check_changed(bench: Bench) -> None:
    """Another word changes the object and leaves the corners; all of the strength draws everything."""
    import torch

    plain, report = bench.sample(bench.after, negative=bench.before)
    changed, _ = bench.sample(bench.after, edit=bench.edit())
    drawn, cost = bench.sample(bench.after, edit=bench.edit(strength=1.0))
    assert torch.equal(drawn, plain) and not torch.equal(changed, plain)
    assert cost["totals"]["flops"] == report["totals"]["flops"]
    images = bench.vae.decode(changed)[0], bench.picture[0]
    middle, corner = (
        (images[0] - images[1])[part, part].abs().mean() for part in (slice(56, 72), slice(0, 16))
    )
    assert middle > 0.2 > 0.05 > corner, (middle, corner)
    _, noted = bench.sample(bench.after, negative=bench.encode("blurry"), edit=bench.edit())
    assert any("negative has no effect" in note for note in noted["notes"]), noted["notes"]


def check_sizes(bench: Bench) -> None:
    """Pictures of any size, a batch of them, and alpha."""
    import torch

    for shape in ((1, 1, 300, 3), (2, 90, 200, 4), (1, 512, 512, 3)):
        edit = bench.edit(image=torch.rand(shape))
        found, _ = bench.sample(bench.after, edit=edit, batch_size=2)
        assert found.isfinite().all() and len(found) == 2


def check_refusals(bench: Bench) -> None:
    """What does not fit is named."""
    import torch
    from pack.nodes.loaders import LoadModel, LoadTokenizer

    var, vq = LoadModel.execute("tiny_var.safetensors"), LoadTokenizer.execute("tiny_vq.safetensors")
    star = LoadModel.execute("tiny_star.safetensors").args[0]
    var, vq = var.args[0], vq.args[0]
    refused(lambda: bench.edit(model=var, vae=vq), "model: found VAR weights", "generating Infinity model")
    refused(lambda: bench.edit(model=star, vae=vq), "model: found STAR weights")
    refused(lambda: bench.edit(model=var), "vae")
    refused(lambda: bench.edit(prompt="a red circle"), "prompt: found", "a conditioning")
    refused(lambda: bench.edit(prompt=[[torch.zeros(1, 3, 7), {}]]), "prompt: found text features of shape")
    refused(lambda: bench.edit(image=torch.full((1, 8, 8, 3), torch.nan)), "image: found NaN")
    refused(lambda: bench.edit(strength=1.5), "strength", "1.5")
    refused(lambda: bench.edit(strength="much"), "strength", "much")
    refused(lambda: bench.sample(bench.after, edit=bench.edit(), cfg="1"), "cfg is 1")


run_with(Bench, globals(), PACK, MODELS)
