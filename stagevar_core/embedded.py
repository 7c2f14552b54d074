"""The small models that come with this package, and where their files are."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = {name: ASSETS / f"{name}.safetensors" for name in ("transformer", "tokenizer", "text_encoder")}
EDITOR = ASSETS / "editor.safetensors"  # the embedded transformer that edits; the others serve it, too
ARTWORK = {name: ASSETS / f"artwork_{name}.safetensors" for name in ("transformer", "tokenizer")}
JUDGE = ASSETS / "artwork_judge.safetensors"  # reads the pictures of the artwork model
# By what they draw: scenes from captions (Infinity), emoji artwork from class names (VAR).
MODELS = {"scenes": EMBEDDED, "artwork": ARTWORK}
