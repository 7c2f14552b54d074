"""Writes the trained parts as the files that ship: float16 matrices, configuration in the metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from common import Log, finished
from editing import SAMPLING as EDIT_SAMPLING
from editing import trained_model
from text import load_text
from tokenizer import CONFIG as TOKENIZER_CONFIG
from transformer import CONFIG, SAMPLING

from stagevar_core.checkpoints.header import Header
from stagevar_core.checkpoints.save import save
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.schedule import infinity_aspect_table

ASSETS = Path(__file__).resolve().parents[2] / "stagevar_core" / "assets"
TITLE = "StageVAR-scenes"
TIED = "encoder.embed_tokens.weight"  # the same tensor as shared.weight
LIMIT = 25 * 2**20


def export(out: Path, assets: Path = ASSETS) -> None:
    """Write the three files into ``assets``; raises ``ValueError`` when they are larger than allowed."""
    assets.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = load_text(out)
    text_config = T5EncoderConfig.from_dict(encoder.config.to_dict())
    text_weights = {name: tensor for name, tensor in encoder.state_dict().items() if name != TIED}
    table = infinity_aspect_table(TOKENIZER_CONFIG.stride).restrict([1.0], ["0.06M"])
    defaults = {
        "cfg": SAMPLING.cfg_scale,
        "temperature": SAMPLING.temperature,
        "top_k": SAMPLING.top_k,
        "top_p": SAMPLING.top_p,
    }
    image = Header("tokenizer", "infinity", TOKENIZER_CONFIG.to_dict(), trained=table, title=TITLE)
    model = Header("transformer", "infinity", CONFIG.to_dict(), trained=table, defaults=defaults, title=TITLE)
    text = Header("text_encoder", "t5", text_config.to_dict(), tokenizer_json=tokenizer.to_str(), title=TITLE)
    files = {
        "tokenizer": (finished(out / "tokenizer.pt")["ema"], image),
        "transformer": (finished(out / "transformer.pt")["ema"], model),
        "text_encoder": (text_weights, text),
    }
    log, total = Log(out / "export.jsonl"), 0
    for name, (weights, header) in files.items():
        size = save(assets / f"{name}.safetensors", weights, header, dtype=torch.float16)
        total += size
        log(file=name, bytes=size)
    if total > LIMIT:
        raise ValueError(f"the embedded model has {total} bytes; it may have {LIMIT}")


def export_editor(out: Path, assets: Path = ASSETS) -> int:
    """Write the transformer that edits beside the files that it shares with the other one; its size."""
    model, own = trained_model(out), EDIT_SAMPLING
    table = infinity_aspect_table(TOKENIZER_CONFIG.stride).restrict([1.0], ["0.06M"])
    defaults = {"cfg": own.cfg_scale, "temperature": own.temperature, "top_k": own.top_k, "top_p": own.top_p}
    title = f"{TITLE}-edit"
    header = Header(
        "transformer", "infinity", model.config.to_dict(), trained=table, defaults=defaults, title=title
    )
    size = save(assets / "editor.safetensors", model.state_dict(), header, dtype=torch.float16)
    Log(out / "export.jsonl")(file="editor", bytes=size)
    return size
