"""A small random Qwen2 of the ``transformers`` library and a vocabulary for it."""

from pathlib import Path

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from stagevar_core.conditioning.qwen import PAD_TOKEN, QwenConfig
from tests.support.tiny import randomize

WORDS = ("<unk>", "a", "red", "blue", "circle", "Prompt", "User", "image", "cat", ":")
SHAPE = QwenConfig(
    vocab_size=40, hidden_size=128, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1,
    num_key_value_heads=1,
)  # fmt: skip


def vocabulary() -> str:
    """Words and the padding token, as a ``tokenizers`` JSON."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(PAD_TOKEN, special=True)])
    return tokenizer.to_str()


def tiny_qwen(config: QwenConfig = SHAPE) -> Qwen2Model:
    """A random language model."""
    model = Qwen2Model(Qwen2Config(**config.to_dict(), use_cache=False))
    randomize(model, 0, spread=0.5)
    return model.eval()


def published(config: QwenConfig = SHAPE) -> dict[str, Tensor]:
    """Its tensors under the names of the files, with the head that writes text."""
    state = {f"model.{name}": tensor for name, tensor in tiny_qwen(config).state_dict().items()}
    return {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}


def write_qwen(folder: Path) -> Path:
    """The folder of a text encoder: weights and vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(published(), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(vocabulary(), encoding="utf-8")
    return folder / "model.safetensors"
