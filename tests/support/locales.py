"""The languages that the pack brings, for tests of their texts and of the page."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.name != "en")
# Nodes of ComfyUI itself that texts name, as its own page calls them in that language.
CORE = {
    "zh": {
        *("CLIP文本编码", "VAE解码", "VAE编码", "加载图像", "预览图像", "保存图像", "外补画板"),
        *("设置Latent噪波遮罩", "从批次获取Latent", "复制Latent批次", "加载Latent", "加载放大模型"),
    }
}


def definitions(language: str) -> dict[str, dict]:
    """The nodes of a language."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
