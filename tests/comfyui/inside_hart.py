"""Checks of HART inside ComfyUI's own process; `test_hart.py` starts it.

python inside_hart.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from checking import refused, sample
from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
HART_FILE, CODES_FILE, QWEN_FILE = "tiny_hart.bin", "tiny_hart_vae.bin", "tiny_qwen.safetensors"
VAR_FILE, VQ_FILE = "tiny_var.safetensors", "tiny_vq.safetensors"
PROMPT = "a red circle"


def check_text(model: Any, clip: Any) -> None:
    """The features are those of the library behind the fixed text, padding among them."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.conditioning import PADDING, conditioning_of
    from pack.stagevar_core.conditioning.qwen import QwenTextEncoder

    import nodes as host

    checkpoint = files.load(files.TEXT_ENCODER, QWEN_FILE)
    core = QwenTextEncoder(checkpoint.config, checkpoint.tensors, checkpoint.tokenizer_json)

    def encode(text: str) -> list:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    for text, count in ((PROMPT, 3), ("", 0)):
        (wanted,), ((features, extra),) = core.encode([text]), encode(text)
        assert features.shape == (1, 300, 128) and extra[PADDING] == 300 - count, (text, extra[PADDING])
        assert torch.allclose(features[0], wanted, atol=2e-4), (features[0] - wanted).abs().max()
    made = conditioning_of(model.model, encode(PROMPT), encode("a blue cat"), 2).conditioning
    assert made.padding == (297, 297) and made.negative_padding == (297, 297)
    assert made.features[0].shape == (300, 128)
    assert not torch.equal(encode("a (red:1.4) circle")[0][0], encode(PROMPT)[0][0])
    assert encode("a (red:1.4) circle")[0][0].isfinite().all()
    cut = conditioning_of(model.model, encode("red " * 320), None, 1)
    assert cut.conditioning.padding == (0,)
    assert cut.notes == ("the positive prompt has 320 tokens; this model reads 300, the rest is ignored",)
    joined = host.ConditioningConcat().concat(encode(PROMPT), encode("a"))[0]
    made = conditioning_of(model.model, joined, None, 1).conditioning
    assert len(made.features[0]) == 300, "what is too long is cut as for every model"


def check_pictures(model: Any, vae: Any, clip: Any) -> None:
    """Pictures, off and accelerated; seeds and batches keep them; the residual can be left out."""
    import torch
    from pack.nodes.acceleration import Accelerate

    text = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    f_hat, report = sample(model, vae, text)
    assert f_hat.shape == (1, 4, 16, 16) and report["policy"] == "off" and len(report["scales"]) == 8
    assert report["prefix"]["tokens"] == 300 and report["scales"][-1]["flops"]["refine"] > 0
    assert vae.decode(f_hat).shape == (1, 256, 256, 3)
    batch = sample(model, vae, text, batch_size=2)[0]
    assert torch.allclose(batch[:1], f_hat, atol=1e-3) and not torch.allclose(batch[1:], f_hat, atol=1e-2)
    assert not torch.equal(sample(model, vae, text, refine="off")[0], f_hat)
    assert not torch.equal(sample(model, vae, text, smooth=True)[0], f_hat)
    other = clip.encode_from_tokens_scheduled(clip.tokenize("a blue cat"))
    assert not torch.equal(sample(model, vae, text, negative=other)[0], f_hat)
    for preset in ("balanced", "faster-hart"):
        faster = Accelerate.execute(model, preset).args[0]
        assert sample(faster, vae, text)[1]["totals"]["flop_ratio"] > 1.15, preset
    off = Accelerate.execute(faster, "off").args[0]
    assert torch.equal(sample(off, vae, text)[0], f_hat)


def check_inpainting(model: Any, vae: Any, clip: Any) -> None:
    """What the mask leaves keeps the codes of the picture, without a residual; the rest is drawn."""
    import torch
    from pack.nodes.editing import EditNode

    text = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    picture = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    nothing = EditNode.execute(model, vae, picture, torch.zeros(1, 64, 64)).args[0]
    whole = sample(model, vae, text, edit=nothing)[0]
    assert torch.equal(whole, sample(model, vae, text, edit=nothing, seed=6)[0]), "nothing is drawn"
    mask = torch.zeros(1, 256, 256)
    mask[:, :, 128:] = 1.0
    edit = EditNode.execute(model, vae, picture, mask).args[0]
    part = sample(model, vae, text, edit=edit)[0]
    assert not torch.allclose(part, whole, atol=1e-2)


def check_refusals(model: Any, vae: Any, clip: Any) -> None:
    """What does not fit is named, both sides of it."""
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer
    from pack.stagevar_core.checkpoints.errors import CheckpointError

    import nodes as host

    text = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    var, vq = LoadModel.execute(VAR_FILE).args[0], LoadTokenizer.execute(VQ_FILE).args[0]
    refused(lambda: sample(model, vq, text), "vae", VQ_FILE, "family var", HART_FILE)
    refused(lambda: sample(var, vae, text), "vae", CODES_FILE, "family hart", VAR_FILE)
    features, extra = text[0]
    refused(lambda: sample(model, vae, [[features[:, :40], {}]]), "shape (40, 128)", "(300, 128)")
    refused(lambda: sample(model, vae, [[features[..., :64], extra]]), "positive", "(1, 300, 64)", "128")
    area = host.ConditioningSetArea().append(text, 128, 128, 0, 0, 1.0)[0]
    refused(lambda: sample(model, vae, area), "cross-attention")
    late = host.ConditioningSetTimestepRange().set_range(text, 0.5, 1.0)[0]
    early = host.ConditioningSetTimestepRange().set_range(text, 0.0, 0.5)[0]
    refused(lambda: sample(model, vae, [*early, *late]), "reads its text once")
    try:
        LoadTextEncoder.execute(f"bare_{QWEN_FILE}")
    except (ValueError, CheckpointError) as error:
        assert "40 tokens and no vocabulary" in str(error), error
    else:
        raise AssertionError("an encoder without a vocabulary that fits was loaded")


def main() -> None:
    load_pack(PACK, MODELS)
    import torch
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    with torch.inference_mode():
        model, vae = LoadModel.execute(HART_FILE).args[0], LoadTokenizer.execute(CODES_FILE).args[0]
        clip = LoadTextEncoder.execute(QWEN_FILE).args[0]
        assert (model.model.family, vae.checkpoint.family) == ("hart", "hart")
        print("ok: loaded", flush=True)
        check_text(model, clip)
        print("ok: text", flush=True)
        check_pictures(model, vae, clip)
        print("ok: pictures", flush=True)
        check_inpainting(model, vae, clip)
        print("ok: in-painting", flush=True)
        check_refusals(model, vae, clip)
        print("ok: refusals")


main()
