"""Checks of Switti inside ComfyUI's own process; `test_switti.py` starts it.

python inside_switti.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from checking import refused, sample
from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
FILES = {"Switti": "tiny_switti.safetensors", "Switti-AR": "tiny_switti_ar.safetensors"}
SMALL, LARGE = "tiny_clip_l.safetensors", "tiny_clip_g.safetensors"
PROMPT = "a red circle"


def encoded(clip: Any, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def check_pair(model: Any, clip: Any) -> None:
    """The features of both are the library's, up to the end token, with the empty prompt."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.conditioning import conditioning_of
    from pack.nodes.loaders import LoadTextEncoder
    from pack.stagevar_core.conditioning.clip import CLIPTextEncoder, read_tokenizer
    from pack.stagevar_core.conditioning.clip_pair import CLIPPair

    vocabulary = read_tokenizer(Path(COMFYUI) / "comfy" / "sd1_tokenizer")
    loaded = [files.load(files.TEXT_ENCODER, name) for name in (SMALL, LARGE)]
    core = CLIPPair([CLIPTextEncoder(each.config, each.tensors, vocabulary) for each in loaded])
    wanted, empty = core.encode([PROMPT, ""])
    made = conditioning_of(model.model, encoded(clip, PROMPT), None, 2).conditioning
    assert len(made.features) == 2 and made.features[0].shape == wanted.shape == (5, 192)
    assert torch.allclose(made.features[0], wanted, atol=1e-4)
    assert torch.allclose(made.null, empty, atol=1e-4)
    turned = LoadTextEncoder.execute(LARGE, "default", SMALL).args[0]
    assert torch.equal(encoded(turned, PROMPT)[0][0], encoded(clip, PROMPT)[0][0])
    heads = clip.tokenizer.state_dict()
    assert sorted(name.partition(".")[0] for name in heads) == ["clip_g", "clip_l"]
    long = conditioning_of(model.model, encoded(clip, "red " * 200), None, 1)
    assert long.notes == ("the positive prompt has 202 tokens; this model reads 77, the rest is ignored",)
    assert len(long.conditioning.features[0]) == 77


def check_pictures(models: dict[str, Any], vae: Any, clip: Any) -> None:
    """Text gives a picture of the trained size, off and accelerated; weights and negatives change it."""
    import torch
    from pack.nodes.acceleration import Accelerate

    text = encoded(clip, PROMPT)
    for name, model in models.items():
        f_hat, report = sample(model, vae, text)
        assert f_hat.shape == (1, 4, 16, 16) and report["totals"]["flop_ratio"] == 1.0
        assert (report["totals"]["kv_peak_bytes"] > 0) == name.endswith("AR")
        assert vae.decode(f_hat).shape == (1, 256, 256, 3)
        assert not torch.equal(sample(model, vae, encoded(clip, "a (red:1.4) circle"))[0], f_hat)
        assert torch.equal(sample(model, vae, text, negative=encoded(clip, ""))[0], f_hat)
        assert not torch.equal(sample(model, vae, text, smooth=True)[0], f_hat)
        batch = sample(model, vae, text, batch_size=2)[0]
        assert torch.allclose(batch[:1], f_hat, atol=1e-3)
        for preset in ("quality", "balanced", "paper"):
            faster = Accelerate.execute(model, preset).args[0]
            assert sample(faster, vae, text)[1]["totals"]["flop_ratio"] > 1.2
    assert not torch.equal(sample(models["Switti"], vae, text)[0], sample(models["Switti-AR"], vae, text)[0])


def check_inpainting(model: Any, vae: Any, clip: Any) -> None:
    """What the mask leaves keeps the picture's codes."""
    import torch
    from pack.nodes.editing import EditNode

    picture = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    nothing = EditNode.execute(model, vae, picture, torch.zeros(1, 64, 64)).args[0]
    whole = sample(model, vae, encoded(clip, PROMPT), edit=nothing)[0]
    assert torch.allclose(whole, vae.encode(picture).to(whole), atol=1e-5)


def check_refusals(model: Any, vae: Any, clip: Any) -> None:
    """One CLIP of two, features of another loader, texts that are too long, two that are no pair."""
    from pack.nodes.host.conditioning import NULL_TEXT
    from pack.nodes.loaders import LoadTextEncoder

    import nodes as core

    for name, width in ((SMALL, 64), (LARGE, 128)):
        alone = LoadTextEncoder.execute(name).args[0]
        refused(lambda one=alone: sample(model, vae, encoded(one, PROMPT)), f"{width})", "192)")
    ((features, extra),) = encoded(clip, PROMPT)
    bare = [[features, {key: value for key, value in extra.items() if key != NULL_TEXT}]]
    refused(lambda: sample(model, vae, bare), "positive", "where the text ends", "Load StageVAR Text Encoder")
    joined = encoded(clip, PROMPT)
    for _ in range(20):
        joined = core.ConditioningConcat().concat(joined, encoded(clip, PROMPT))[0]
    refused(lambda: sample(model, vae, joined), "105 tokens", "at most 77")
    refused(lambda: LoadTextEncoder.execute(SMALL, "default", SMALL), SMALL, "64 channels each")
    refused(lambda: LoadTextEncoder.execute(SMALL, "default", "no such"), "second_text_encoder_name")
    refused(lambda: LoadTextEncoder.execute("embedded/StageVAR-scenes (built in)", "default", SMALL), "t5")
    for value in (None, 3, []):
        refused(lambda v=value: LoadTextEncoder.execute(SMALL, "default", v), "second_text_encoder_name")
    refused(lambda: sample(model, vae, encoded(clip, PROMPT), refine="full"), "refine", "no sampler network")


def check_matching() -> None:
    """One choice loads the transformer with its tokenizer and both CLIPs."""
    from pack.nodes.host.matching import matching
    from pack.nodes.load import Load

    names = matching(FILES["Switti"])
    assert (names.text_encoder, names.second_text_encoder) == (SMALL, LARGE)
    model, vae, clip = Load.execute(FILES["Switti"]).args
    assert sample(model, vae, encoded(clip, PROMPT))[0].shape == (1, 4, 16, 16)
    assert Load.validate_inputs(FILES["Switti"]) is True and Load.fingerprint_inputs(FILES["Switti"])


def main() -> None:
    load_pack(PACK, MODELS)
    import torch
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    with torch.inference_mode():
        models = {name: LoadModel.execute(file).args[0] for name, file in FILES.items()}
        vae = LoadTokenizer.execute("tiny_vqvae_switti.safetensors").args[0]
        clip = LoadTextEncoder.execute(SMALL, "default", LARGE).args[0]
        for name, check in (
            ("pair", lambda: check_pair(models["Switti"], clip)),
            ("pictures", lambda: check_pictures(models, vae, clip)),
            ("in-painting", lambda: check_inpainting(models["Switti"], vae, clip)),
            ("refusals", lambda: check_refusals(models["Switti"], vae, clip)),
            ("matching", check_matching),
        ):
            check()
            print(f"ok: {name}", flush=True)


main()
