"""Checks of drafts and StageVAR Continue inside ComfyUI's own process; `test_continuing.py` starts it.

python inside_continuing.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from checking import refused, run_checks
from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
PROMPT = "a striped red ring to the left of a blue cross"
SIZE = {"width": 128, "height": 128}
AGAIN, GONE_ON = "ran again on their codes", "those of the run that this one goes on from"


class Set(NamedTuple):
    """A model with its tokenizer and a conditioning."""

    model: Any
    vae: Any
    positive: Any
    size: dict[str, int] = SIZE

    def sample(self, images: int = 3, **inputs: Any) -> Any:
        from pack.nodes.sampling import Sampler

        given = {"seed": 11, "batch_size": images, "cfg": 2.0, **self.size, **inputs}
        model = given.pop("model", self.model)
        return Sampler.execute(model, self.vae, given.pop("positive", self.positive), **given)

    def go_on(self, latent: dict, **inputs: Any) -> Any:
        from pack.nodes.continuing import Continue

        model, vae = inputs.pop("model", self.model), inputs.pop("vae", self.vae)
        return Continue.execute(model, vae, latent, inputs.pop("positive", self.positive), **inputs)

    def shown(self, latent: dict) -> Any:
        """The tokenizer's own channels."""
        return latent["samples"][:, : self.vae.latent_channels]


def text(clip: Any, words: str = PROMPT) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(words))


def said(result: Any) -> str:
    return "\n".join(result.ui["text"])


def picked(latent: dict, index: int, length: int = 1) -> dict:
    from nodes import LatentFromBatch

    return LatentFromBatch().frombatch(latent, index, length)[0]


def saved(latent: dict, name: str) -> dict:
    """Through Save Latent and Load Latent."""
    import folder_paths

    from nodes import LoadLatent, SaveLatent

    folder_paths.set_output_directory(os.getcwd())
    folder_paths.set_input_directory(os.getcwd())
    made = SaveLatent().save(latent, name)["ui"]["latents"][0]["filename"]
    return LoadLatent().load(made)[0]


def rebatched(latent: dict, size: int) -> list[dict]:
    from comfy_extras.nodes_rebatch import LatentRebatch

    return LatentRebatch.execute([latent], [size]).args[0]


def same(one: Any, other: Any) -> None:
    import torch

    assert one.shape == other.shape and torch.equal(one, other), (one.shape, other.shape)


def check_same_end(have: Set) -> None:
    """Stopped and gone on is uninterrupted, samples bit for bit, in both dtypes, kept or not."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer

    half = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "bfloat16")
    for each in (have, have._replace(model=half)):
        whole = each.sample()
        draft = each.sample(stop_after="structure").args[0]
        kept, loaded = each.go_on(draft), each.go_on(saved(draft, "draft"))
        assert GONE_ON in said(kept) and AGAIN not in said(kept), said(kept)
        assert AGAIN in said(loaded), said(loaded)
        for found in (kept, loaded):
            same(found.args[0]["samples"], whole.args[0]["samples"])
        twice = each.go_on(each.sample(stop_after="semantic").args[0], stop_after="scale 6").args[0]
        assert GONE_ON in said(each.go_on(twice))
        same(each.go_on(twice).args[0]["samples"], whole.args[0]["samples"])


def check_picks(have: Set) -> None:
    """Through core's nodes for batches, which keep what a latent holds."""
    import torch
    from comfy_extras.nodes_latent import LatentBatch

    from nodes import RepeatLatentBatch

    whole, draft = have.sample().args[0], have.sample(stop_after="structure").args[0]
    own = have.shown(whole)
    one = have.go_on(picked(draft, 1))
    assert GONE_ON in said(one)
    same(have.shown(one.args[0]), own[1:2])
    for part, rows in zip(rebatched(draft, 2), (slice(0, 2), slice(2, 3)), strict=True):
        assert "stagevar_paused" in draft and "stagevar_paused" not in part
        same(have.shown(have.go_on(part).args[0]), own[rows])
    repeated = RepeatLatentBatch().repeat(picked(draft, 2), 2)[0]
    twins = have.go_on(repeated)
    same(have.shown(twins.args[0]), own[2:3].expand(2, -1, -1, -1))
    assert "give a seed" in said(twins)
    varied = have.go_on(repeated, seed="41")
    assert "give a seed" not in said(varied)
    latents = have.shown(varied.args[0])
    assert not torch.equal(latents[0], latents[1])
    other = have.go_on(picked(draft, 2), seed=42)
    same(have.shown(other.args[0])[0], latents[1])
    joined = LatentBatch.execute(picked(draft, 2), have.sample(1, stop_after="structure").args[0]).args[0]
    same(have.shown(have.go_on(joined).args[0]), own[[2, 0]])


def check_presets(have: Set) -> None:
    """With the preset of the draft it ends alike; with another one the draft's scales stay."""
    import torch
    from pack.nodes.host.attached import attach
    from pack.nodes.host.carried import carried
    from pack.stagevar_core.acceleration.presets import PRESETS

    draft = have.sample(2, stop_after="structure").args[0]
    for name in ("balanced", "auto"):
        fast = attach(have.model, PRESETS[name])
        begun = have.sample(2, model=fast, stop_after="scale 5").args[0]
        ended = have.go_on(begun, model=fast)
        same(ended.args[0]["samples"], have.sample(2, model=fast).args[0]["samples"])
        assert GONE_ON in said(ended)
        other = have.go_on(draft, model=fast)
        assert AGAIN in said(other) and said(other).startswith(name)
        before = carried(draft["samples"], have.vae.latent_channels)
        after = carried(other.args[0]["samples"], have.vae.latent_channels)
        assert before is not None and after is not None and before.scales == 5 and after.finished
        for index in range(2):
            for one, two in zip(before.lead(index), after.lead(index), strict=False):
                assert torch.equal(one.drawn, two.drawn)


def check_drafts(have: Set) -> None:
    """They decode to smaller pictures, show what the finished ones do, and cost what is said."""
    import torch

    latent, dense = have.sample(2).args
    whole = have.vae.decode(latent["samples"])
    for stop, side in (("structure", 96), ("semantic", 96), ("scale 7", 128), ("finished", 128)):
        found = have.sample(2, stop_after=stop)
        picture = have.vae.decode(found.args[0]["samples"])
        assert picture.shape == (2, side, side, 3), picture.shape
        report = found.args[1]
        shares = {"structure": (0.15, 0.25), "semantic": (0.01, 0.05)}.get(stop, (0.99, 1.01))
        done, every = (sum(s["flops"]["total"] for s in each["scales"]) for each in (report, dense))
        assert shares[0] < done / every < shares[1], (done, every)
        small = torch.nn.functional.interpolate(whole.movedim(-1, 1), size=(side, side), mode="area")
        if stop == "structure":
            error = (small.movedim(1, -1) - picture).square().mean()
            assert error < 0.01, error
        assert ("as a draft of 96 x 96" in said(found)) == (side == 96), said(found)
    assert "so it is finished" in said(have.sample(1, stop_after="scale 7"))


def check_finished(have: Set) -> None:
    """Finished pictures are those without a state, bit for bit, and nothing is left to do with them."""
    from comfy_execution.graph_utils import ExecutionBlocker

    latent = have.sample().args[0]
    same(have.vae.decode(latent["samples"]), have.vae.decode(have.shown(latent).contiguous()))
    assert set(latent) == {"samples"}
    found = have.go_on(latent)
    assert found.args[0] is latent and isinstance(found.args[1], ExecutionBlocker)
    assert "nothing left to do: the pictures are finished" in said(found)
    draft = have.sample(1, stop_after="structure").args[0]
    assert "drafts after scale 5 of 7" in said(have.go_on(draft, stop_after="semantic"))


def check_old_latents(have: Set) -> None:
    """Drafts that were saved when the bytes behind them did not repeat end in the same pictures."""
    import torch
    from pack.stagevar_core.sampling.state import length_of

    draft, channels = have.sample(stop_after="structure").args[0], have.vae.latent_channels + 1
    old = draft["samples"].clone()
    for image in old:
        behind = image[channels:].reshape(-1)
        behind[length_of(behind.to(torch.uint8).numpy().tobytes()) :] = 0
    ends = [have.go_on({"samples": samples}).args[0] for samples in (old, draft["samples"])]
    assert torch.equal(*(have.shown(end) for end in ends))


def check_room(have: Set) -> None:
    """Where the host's memory is short nothing is kept, which changes no picture."""
    from pack.nodes.host import bridge

    real, whole = bridge.free_memory, have.sample(2).args[0]
    bridge.free_memory = lambda device: 1000
    try:
        draft = have.sample(2, stop_after="structure")
    finally:
        bridge.free_memory = real
    assert set(draft.args[0]) == {"samples"} and "are not kept" in said(draft)
    same(have.go_on(draft.args[0]).args[0]["samples"], whole["samples"])
    assert "wait in memory" in said(have.sample(2, stop_after="structure"))


def check_patches(have: Set) -> None:
    """What is kept of other weights under the same network is not used."""
    import torch

    draft = have.sample(1, stop_after="structure").args[0]
    patched = have.model.clone()
    key = next(name for name, p in have.model.model.named_parameters() if name.endswith("qkv.weight"))
    weight = dict(have.model.model.named_parameters())[key]
    patched.add_patches({key: ("diff", (0.1 * torch.randn_like(weight),))}, 1.0)
    found = have.go_on(draft, model=patched)
    assert AGAIN in said(found)
    begun = have.sample(1, stop_after="structure", model=patched).args[0]
    assert GONE_ON in said(have.go_on(begun, model=patched)) and AGAIN in said(have.go_on(begun))


def check_memory(have: Set) -> None:
    """A draft asks for less; image by image it keeps its state and ends alike."""
    from pack.nodes.host import running

    asked, whole = [], have.sample().args[0]
    load, generate = running.mm.load_models_gpu, running.generate

    def fails_on_batches(network: Any, conditioning: Any, *args: Any, **options: Any) -> Any:
        if conditioning.batch > 1:
            raise RuntimeError("CUDA out of memory")
        return generate(network, conditioning, *args, **options)

    def loads(models: Any, memory_required: int) -> None:
        asked.append(memory_required)
        load(models, memory_required=memory_required)

    running.mm.load_models_gpu = loads
    try:
        have.sample()
        have.sample(stop_after="structure")
        assert asked[1] < 0.5 * asked[0], asked
        running.generate = fails_on_batches
        draft = have.sample(stop_after="structure")
        assert "image by image" in said(draft)
        found = have.go_on(draft.args[0])
    finally:
        running.mm.load_models_gpu, running.generate = load, generate
    assert (have.shown(found.args[0]) - have.shown(whole)).abs().max() < 1e-3


def check_progress(have: Set) -> None:
    """The bar goes from nothing to full over the scales that run."""
    from pack.nodes.host import monitor

    shown: list[float] = []

    class Bar:
        def __init__(self, total: int) -> None:
            shown.clear()

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            shown.append(value / total)

    real, monitor.comfy.utils.ProgressBar = monitor.comfy.utils.ProgressBar, Bar
    try:
        draft = have.sample(2, stop_after="structure").args[0]
        first = list(shown)
        have.go_on(draft)
    finally:
        monitor.comfy.utils.ProgressBar = real
    for steps in (first, shown):
        assert steps == sorted(steps) and steps[-1] == 1.0, steps
        gaps = [after - before for before, after in zip([0.0, *steps], steps, strict=False)]
        assert max(gaps) < 0.25, steps


def check_cancel(have: Set) -> None:
    """Cancelling ends it between two blocks, and the draft can be gone on from afterwards."""
    import comfy.model_management as mm
    from pack.nodes.host.monitor import HostMonitor

    draft, real, calls = have.sample(1, stop_after="structure").args[0], HostMonitor.block, []

    def cancels(self: Any, scale: Any, layer: int) -> None:
        calls.append(layer)
        if len(calls) == 2:
            mm.interrupt_current_processing(True)
        real(self, scale, layer)

    HostMonitor.block = cancels
    try:
        have.go_on(draft)
    except mm.InterruptProcessingException:
        assert len(calls) == 2
    else:
        raise AssertionError("it went on")
    finally:
        HostMonitor.block = real
        mm.interrupt_current_processing(False)
    same(have.go_on(draft).args[0]["samples"], have.sample(1).args[0]["samples"])


def check_changes(have: Set) -> None:
    """Another prompt, guidance and temperature for what is left; prompts of a batch in turn."""
    import torch

    draft = have.sample(2, stop_after="semantic").args[0]
    whole = have.shown(have.go_on(draft).args[0])
    for change in ({"cfg": 1.0}, {"temperature": "0.1"}, {"top_k": 1}, {"top_p": 0.5}, {"seed": 5}):
        found = have.go_on(draft, **change)
        assert not torch.equal(have.shown(found.args[0]), whole), change
    both = [[torch.cat([have.positive[0][0]] * 2), {}]]
    assert "in turn" in said(have.go_on(draft, positive=both))
    high = 2**64 - 1
    same(
        have.go_on(draft, seed=str(high)).args[0]["samples"], have.go_on(draft, seed=high).args[0]["samples"]
    )


def check_joined(have: Set) -> None:
    """What a joined batch cannot keep of its runs, and what a latent holds besides, is said on the node."""
    import torch
    from comfy_extras.nodes_latent import LatentBatch

    from nodes import SetLatentNoiseMask

    draft, other = (have.sample(1, stop_after="scale 3", cfg=cfg).args[0] for cfg in (1.0, 3.0))
    joined = LatentBatch.execute(draft, other).args[0]
    assert "different values of cfg" in said(have.go_on(joined, stop_after="scale 4"))
    assert "different values" not in said(have.go_on(joined, stop_after="scale 4", cfg=2.0))
    masked = SetLatentNoiseMask().set_mask(draft, torch.ones(1, 8, 8))[0]
    assert "noise mask has no effect" in said(have.go_on(masked, stop_after="scale 4"))


def check_families(have: Set) -> None:
    """VAR and STAR, whose codes are rows of a codebook."""
    import torch
    from pack.nodes.labels import NO_CLASS, ClassLabel
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    vae = LoadTokenizer.execute("tiny_vq.safetensors").args[0]
    clip = LoadTextEncoder.execute("tiny_clip.safetensors", "default").args[0]
    size = {"width": 256, "height": 256}
    for file, positive in (
        ("tiny_var.safetensors", ClassLabel.execute(NO_CLASS, "7").args[0]),
        ("tiny_star.safetensors", text(clip)),
        ("tiny_star_sampler.safetensors", text(clip)),
    ):
        each = Set(LoadModel.execute(file, "default", "auto").args[0], vae, positive, size)
        smooth = {"smooth": True} if file == "tiny_var.safetensors" else {}
        for given in ({}, smooth):
            whole, draft = each.sample(**given).args[0], each.sample(stop_after="structure", **given).args[0]
            assert vae.decode(draft["samples"]).shape == (3, 192, 192, 3)
            for found in (each.go_on(draft), each.go_on(saved(draft, "vq"))):
                apart = (each.shown(found.args[0]) - each.shown(whole)).abs().max().item()
                assert apart <= 1e-6, (file, given, apart)
            one = each.go_on(picked(draft, 2)).args[0]
            near = 1e-3 if given else 1e-6  # mixtures round by the number of images, as codes do not
            assert torch.allclose(each.shown(one), each.shown(whole)[2:], rtol=0, atol=near)
        refused(lambda draft=draft: have.go_on(draft), "latent: ", file, "embedded")
    var = Set(LoadModel.execute("tiny_var.safetensors", "default", "auto").args[0], vae, text(clip), size)
    refused(lambda: var.go_on(draft), "latent: ", "star", "tiny_var")


def check_refusals(have: Set) -> None:
    """Whatever does not belong is one sentence with the input's name."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer

    from nodes import LatentComposite, LatentUpscale

    draft = have.sample(1, stop_after="structure").args[0]
    encoded = {"samples": have.vae.encode(torch.rand(1, 128, 128, 3))}
    for latent in (
        encoded,
        LatentUpscale().upscale(draft, "bilinear", 256, 256, "disabled")[0],
        {"samples": torch.zeros(1, 4, 16, 16)},
        {"samples": torch.zeros(1, 16, 4)},
        {"samples": draft["samples"][:, :-20]},
    ):
        refused(lambda latent=latent: have.go_on(latent), "latent: ", "")
    refused(lambda: have.go_on(encoded), "latent: ", "VAE Encode makes none", "Load Latent")
    other = have.sample(1, seed=4, stop_after="structure").args[0]
    mixed = LatentComposite().composite(draft, other, 24, 24)[0]
    refused(lambda: have.go_on(mixed), "latent: ")
    begun, second = (have.sample(1, seed=seed, stop_after="scale 1").args[0] for seed in (1, 2))
    patch = {"samples": second["samples"][:, :, -2:, -2:]}  # where the few bytes of a short run do not reach
    mixed = LatentComposite().composite(begun, patch, 80, 80)[0]
    assert not torch.equal(mixed["samples"], begun["samples"])
    refused(lambda: have.go_on(mixed), "latent: ", "damaged", "mixed with another")
    refused(lambda: have.go_on({"samples": 7}), "latent: ", "StageVAR Sampler")
    refused(lambda: have.go_on(None), "latent: ")
    editor = load_transformer(files.load(files.TRANSFORMER, files.EDITOR), "default")
    refused(lambda: have.go_on(draft, model=editor), "model: ", "edits pictures", "Edit by Text")
    for name, values in (
        ("stop_after", ("scale 0", "fidelity", 3, None, [])),
        ("seed", (-2, "a", True, 2**64)),
        ("cfg", ("much", float("nan"), 31)),
    ):
        for value in values:
            refused(lambda name=name, value=value: have.go_on(draft, **{name: value}), name)
    refused(lambda: have.sample(1, stop_after="scale 99"), "stop_after", "scale 99")


def main() -> None:
    load_pack(PACK, MODELS)
    import comfy_extras.nodes_post_processing  # noqa: F401 - it and nodes_latent import each other, this first
    import torch
    from pack.nodes.load import Load

    with torch.inference_mode():
        model, vae, clip = Load.execute().args
        have = Set(model, vae, text(clip))
        run_checks(globals(), have)


main()
