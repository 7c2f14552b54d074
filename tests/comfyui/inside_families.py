"""Checks of VAR and STAR inside ComfyUI's own process; `test_families.py` starts it.

python inside_families.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from checking import refused
from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
CLIP_FILE = "tiny_clip.safetensors"
CHOSEN = {"cfg": -1.0, "temperature": -1.0, "top_k": -1, "top_p": -1.0, "width": 256, "height": 256}


def sample(model: Any, vae: Any, positive: list, **inputs: Any) -> tuple[Any, Any, Any]:
    """The sampler's latent and report, and the generation behind them."""
    from pack.nodes.host import running
    from pack.nodes.sampling import Sampler

    kept, generate = [], running.generate

    def spy(*args: Any, **options: Any) -> Any:
        kept.append(generate(*args, **options))
        return kept[-1]

    class Node(Sampler):
        hidden = SimpleNamespace(unique_id=None)

    running.generate = spy
    try:
        settings = {**CHOSEN, "seed": 5, "batch_size": 1, **inputs}
        latent, report = Node.execute(model=model, vae=vae, positive=positive, **settings).args
    finally:
        running.generate = generate
    return latent["samples"][:, : vae.latent_channels], report, kept[-1]


def label(text: str) -> list:
    from pack.nodes.labels import NO_CLASS, ClassLabel

    return ClassLabel.execute(NO_CLASS, text).args[0]


def check_var(model: Any, vae: Any) -> None:
    """A class gives a picture of the trained size, off and accelerated; seeds and batches keep it."""
    import torch
    from pack.nodes.acceleration import Accelerate

    f_hat, report, run = sample(model, vae, label("3"))
    assert f_hat.shape == (1, 4, 16, 16) and report["policy"] == "off" and len(report["scales"]) == 10
    assert report["totals"]["flop_ratio"] == 1.0
    image = vae.decode(f_hat)
    assert image.shape == (1, 256, 256, 3) and 0 <= image.min() < image.max() <= 1
    batch = sample(model, vae, label("3"), batch_size=2)[0]
    assert torch.allclose(batch[:1], f_hat, atol=1e-3) and not torch.allclose(batch[1:], f_hat, atol=1e-2)
    assert not torch.equal(sample(model, vae, label("4"))[0], f_hat)
    assert not torch.equal(sample(model, vae, label("3"), negative=label("4"))[0], f_hat)
    assert not torch.equal(sample(model, vae, label("3"), smooth=True)[0], f_hat)
    faster = Accelerate.execute(model, "balanced").args[0]
    assert sample(faster, vae, label("3"))[1]["totals"]["flop_ratio"] > 1.2
    off = Accelerate.execute(faster, "off").args[0]
    assert torch.equal(sample(off, vae, label("3"))[0], f_hat)


def check_defaults(model: Any, vae: Any) -> None:
    """None is what the family was published with; the numbers are the user's."""
    from dataclasses import replace

    from pack.nodes.host.drawing import settings_of

    wanted = dict.fromkeys(("cfg", "temperature", "top_k", "top_p")) | {"refine": "auto", "smooth": False}
    own = settings_of(model.model, wanted)
    assert (own.cfg_scale, own.temperature, own.top_k, own.top_p) == (4.0, 1.0, 900, 0.95)
    assert settings_of(model.model, {**wanted, "cfg": 0.0, "refine": "off", "smooth": True}) == replace(
        own, cfg_scale=0.0, refine="off", smooth=True
    )


def check_inpainting(model: Any, vae: Any) -> None:
    """The codes of the source stay wherever the mask is 0, at every scale, and are drawn anew elsewhere."""
    import torch
    from pack.nodes.acceleration import Accelerate
    from pack.nodes.editing import EditNode
    from pack.nodes.host.pictures import fitted

    picture = torch.rand(1, 300, 320, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 300, 320)
    mask[:, :, 160:] = 1.0
    edit = EditNode.execute(model, vae, picture, mask).args[0]
    assert edit.size == (256, 256) and [m.shape[-1] for m in edit.masks] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    assert edit.masks[-1][0, :, :8].all() and not edit.masks[-1][0, :, 8:].any()
    # Another size is asked for: the picture's counts.
    for used in (model, Accelerate.execute(model, "balanced").args[0]):
        _, _, run = sample(used, vae, label("3"), edit=edit, batch_size=2, width=64, height=900)
        for drawn, source, kept in zip(run.codes, edit.codes, edit.masks, strict=True):
            if drawn is not None:
                there = kept.expand_as(drawn)
                assert torch.equal(drawn[there], source.expand_as(drawn).to(drawn.dtype)[there])
        last = max(index for index, drawn in enumerate(run.codes) if drawn is not None)
        assert (run.codes[last] != edit.codes[last].expand_as(run.codes[last])).any()
        assert (run.codes[last][0] != run.codes[last][1]).any()
    nothing = EditNode.execute(model, vae, picture, torch.zeros(1, 64, 64)).args[0]
    whole = sample(model, vae, label("3"), edit=nothing)[0]
    resized = vae.encode(fitted(picture, (256, 256)))
    assert torch.allclose(whole, resized.to(whole), atol=1e-5), "VAE Encode stores the same codes"


def check_embedded_inpainting() -> Any:
    """In-painting is no matter of VAR's: the built-in model keeps its bits, too. Returns its model."""
    import torch
    from pack.nodes.editing import EditNode
    from pack.nodes.host.files import EMBEDDED
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    model, vae = LoadModel.execute(EMBEDDED).args[0], LoadTokenizer.execute(EMBEDDED).args[0]
    clip = LoadTextEncoder.execute(EMBEDDED).args[0]
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1.0
    edit = EditNode.execute(model, vae, torch.full((1, 128, 128, 3), 0.5), mask).args[0]
    _, _, run = sample(model, vae, text, edit=edit, width=128, height=128)
    for drawn, source, kept in zip(run.codes, edit.codes, edit.masks, strict=True):
        there = kept.unsqueeze(1).expand_as(drawn)
        assert torch.equal(drawn[there], source.to(drawn.dtype)[there])
    refused(lambda: sample(model, vae, label("3")), "positive", "class label", "CLIP Text Encode")
    return model, vae, text


def check_star(model: Any, vae: Any, clip: Any) -> None:
    """Text through a core CLIP: the features are the library's, cut at the end, with the empty prompt."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.conditioning import NULL_TEXT, conditioning_of
    from pack.stagevar_core.conditioning.clip import CLIPTextEncoder, read_tokenizer

    checkpoint = files.load(files.TEXT_ENCODER, CLIP_FILE)
    vocabulary = read_tokenizer(Path(COMFYUI) / "comfy" / "sd1_tokenizer")
    core = CLIPTextEncoder(checkpoint.config, checkpoint.tensors, vocabulary)

    def encode(text: str) -> list:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    wanted, empty = core.encode(["a red circle", ""])
    made = conditioning_of(model.model, encode("a red circle"), None, 2).conditioning
    assert len(made.features) == 2 and made.features[0].shape == wanted.shape
    assert torch.allclose(made.features[0], wanted, atol=1e-4)
    assert torch.allclose(made.null, empty, atol=1e-4)
    assert len(clip.tokenize("red " * 200)["clip_h"]) == 1, "a long prompt is cut, not split"

    import nodes as core

    texts = encode("a red circle"), encode("a blue square left of a red ring")
    lengths = [int(text[0][1]["attention_mask"].sum()) for text in texts]
    for joined, length in (
        (core.ConditioningConcat().concat(*texts)[0], sum(lengths)),
        (core.ConditioningAverage().addWeighted(*texts, 0.5)[0], max(lengths)),
        (core.ConditioningAverage().addWeighted(*reversed(texts), 0.5)[0], max(lengths)),
    ):
        assert len(conditioning_of(model.model, joined, None, 1).conditioning.features[0]) == length
    cut = conditioning_of(model.model, encode("red " * 200), None, 1)
    assert cut.notes == ("the positive prompt has 202 tokens; this model reads 77, the rest is ignored",)

    f_hat, report, _ = sample(model, vae, encode("a red circle"))
    assert f_hat.shape == (1, 4, 16, 16) and report["totals"]["flop_ratio"] == 1.0
    assert not torch.equal(sample(model, vae, encode("a (red:1.4) circle"))[0], f_hat)
    assert torch.equal(sample(model, vae, encode("a red circle"), negative=encode(""))[0], f_hat)
    ((features, extra),) = encode("a red circle")
    bare = [[features, {key: value for key, value in extra.items() if key != NULL_TEXT}]]
    refused(lambda: sample(model, vae, bare), "positive", "where the text ends", "Load StageVAR Text Encoder")
    refused(lambda: sample(model, vae, label("3")), "positive", "class label", "CLIP Text Encode")
    refused(lambda: sample(model, vae, encode("a"), refine="mixed"), "refine", "no sampler network")


def check_star_accelerated(models: dict[str, Any], vae: Any, clip: Any) -> None:
    """Presets save work, with the inner sampler's passes counted; off is the run without the node."""
    import torch
    from pack.nodes.acceleration import Accelerate
    from pack.stagevar_core.plots.timeline import timeline

    text = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    for name in ("star", "star with its sampler"):
        dense, whole, _ = sample(models[name], vae, text)
        for preset in ("balanced", "paper"):
            faster = Accelerate.execute(models[name], preset).args[0]
            f_hat, report, _ = sample(faster, vae, text, batch_size=2)
            assert f_hat.shape == (2, 4, 16, 16) and f_hat.isfinite().all()
            assert report["policy"] == preset and report["totals"]["flop_ratio"] > 1.2, report["totals"]
            assert vae.decode(f_hat).shape == (2, 256, 256, 3)
            assert timeline(report).width > 300
        off = Accelerate.execute(faster, "off").args[0]
        assert torch.equal(sample(off, vae, text)[0], dense)
        refined = [scale["flops"]["refine"] > 0 for scale in whole["scales"]]
        assert refined == [False] * 9 + [name != "star"]
    model = models["star with its sampler"]
    drawn = {way: sample(model, vae, text, refine=way)[0] for way in ("auto", "off", "mixed", "full")}
    assert torch.equal(drawn["auto"], drawn["mixed"])
    assert not torch.equal(drawn["auto"], drawn["off"]) and not torch.equal(drawn["full"], drawn["mixed"])


def check_refusals(models: dict[str, Any], vae: Any, embedded: Any) -> None:
    """Wrong pairs and wrong kinds of conditioning are named, before any model is loaded for them."""
    import comfy.model_management as mm

    var, (other, other_vae, text) = models["var"], embedded
    mm.unload_all_models()
    refused(lambda: sample(models["star"], other_vae, text), "vae", "family", "infinity", "var")
    refused(lambda: sample(var, object(), label("3")), "vae", "Load StageVAR Tokenizer")
    refused(lambda: sample(var, other_vae, label("3")), "vae", "family", "infinity", "var")
    refused(lambda: sample(other, vae, text), "vae", "family", "infinity", "var")
    refused(lambda: sample(var, vae, text), "positive", "text", "Class Label")
    refused(lambda: sample(var, vae, label("3"), negative=text), "negative", "text", "Class Label")
    refused(lambda: sample(models["star"], vae, text), "positive", "text features of shape")
    refused(lambda: sample(var, vae, label("10")), "positive", "10", "0 to 9")
    refused(lambda: label("no such animal"), "label", "no such animal")
    refused(lambda: sample(var, vae, label("3"), refine="full"), "refine", "no sampler network")
    assert not mm.loaded_models()
    refused(lambda: sample(other, other_vae, text, smooth=True), "smooth")


def main() -> None:
    load_pack(PACK, MODELS)
    import torch
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    with torch.inference_mode():
        files = {"var": "tiny_var.safetensors", "star": "tiny_star.safetensors"}
        files["star with its sampler"] = "tiny_star_sampler.safetensors"
        models = {name: LoadModel.execute(file).args[0] for name, file in files.items()}
        vae = LoadTokenizer.execute("tiny_vq.safetensors").args[0]
        clip = LoadTextEncoder.execute(CLIP_FILE).args[0]
        assert [model.model.family for model in models.values()] == ["var", "star", "star"]
        print("ok: loaded")
        check_var(models["var"], vae)
        print("ok: var")
        check_defaults(models["var"], vae)
        print("ok: defaults")
        check_inpainting(models["var"], vae)
        print("ok: in-painting")
        embedded = check_embedded_inpainting()
        print("ok: in-painting with bits")
        check_star(models["star"], vae, clip)
        print("ok: star")
        check_star_accelerated(models, vae, clip)
        print("ok: star, accelerated")
        check_refusals(models, vae, embedded)
        print("ok: refusals")


main()
