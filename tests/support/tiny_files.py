"""Tiny random checkpoint files, a complete set like the embedded model's."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel

from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from stagevar_core.checkpoints.header import Header
from stagevar_core.checkpoints.save import save
from stagevar_core.commands.main import main
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.schedule import AspectTable, infinity_aspect_table
from tests.support.tiny import TEXT_WIDTH, randomize, tiny_infinity

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "left", "of")
TEXT = T5EncoderConfig(vocab_size=40, d_model=TEXT_WIDTH, d_ff=24, d_kv=8, num_heads=2, num_layers=2)
CODES = BSQTokenizerConfig(dim=4, width=24, multipliers=(1, 1, 1, 1), blocks=1)
DEFAULTS = {"cfg": 2.0, "temperature": 0.7, "top_k": 0, "top_p": 0.9}


def vocabulary(**padding) -> str:
    """A word vocabulary with T5's end token, as a ``tokenizers`` JSON."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", WORDS.index("</s>"))]
    )
    if padding:
        tokenizer.enable_padding(**padding)
        tokenizer.enable_truncation(3)
    return tokenizer.to_str()


def tiny_t5(config: T5EncoderConfig = TEXT) -> T5EncoderModel:
    """A random T5 encoder of the ``transformers`` library."""
    model = T5EncoderModel(T5Config(**config.to_dict()))
    randomize(model, 0, spread=0.5)
    return model.eval()


def trained() -> AspectTable:
    """128 x 128 and two more shapes at 8 pixels per token."""
    return infinity_aspect_table(8).restrict([1.0, 2.0, 0.5], ["0.06M"])


def write_models(folder: Path, *, codes: BSQTokenizerConfig = CODES, edits: bool = False) -> dict[str, Path]:
    """The three files of a tiny model, float16 like the embedded one."""
    transformer = tiny_infinity(bits=4, edits=edits)
    tokenizer = BSQTokenizer(codes)
    randomize(tokenizer, 1)
    parts = {
        "transformer": ("infinity", transformer.config, transformer.state_dict()),
        "tokenizer": ("infinity", codes, tokenizer.state_dict()),
        "text_encoder": ("t5", TEXT, tiny_t5().state_dict()),
    }
    parts["text_encoder"][2].pop("encoder.embed_tokens.weight", None)
    paths = {}
    for kind, (family, config, tensors) in parts.items():
        header = Header(
            kind=kind,
            family=family,
            config=config.to_dict(),
            trained=None if kind == "text_encoder" else trained(),
            defaults=DEFAULTS if kind == "transformer" else {},
            tokenizer_json=vocabulary() if kind == "text_encoder" else None,
        )
        paths[kind] = folder / f"{kind}.safetensors"
        save(paths[kind], tensors, header, dtype=torch.float16)
    return paths


def command(files: dict[str, Path], *options) -> tuple[int, list[str], list[str]]:
    """Exit code and the lines of both streams of one run of the command line in this process."""
    models = [part for kind, path in files.items() for part in (f"--{kind.replace('_', '-')}", str(path))]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(option) for option in (*options, *models, "--device", "cpu")])
        except SystemExit as exit_:  # argparse ends the process itself
            code = exit_.code
    return code, out.getvalue().splitlines(), err.getvalue().splitlines()
