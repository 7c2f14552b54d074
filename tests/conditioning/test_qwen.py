"""HART's language model: the text before every prompt, padding, files."""

from pathlib import Path

import pytest
import torch

from stagevar_core.checkpoints import CheckpointError, load_text_encoder, prepare
from stagevar_core.conditioning.qwen import MAX_TOKENS, QwenTextEncoder, system_prompt
from stagevar_core.models.companions import PaddingEncoder, check_text
from tests.support.tiny_hart import tiny_hart
from tests.support.tiny_qwen import SHAPE, published, tiny_qwen, vocabulary, write_qwen

PROMPTS = ("a red circle", "", "a blue cat", "a red circle")


@pytest.fixture(scope="module")
def encoder() -> QwenTextEncoder:
    tensors = {
        key.removeprefix("model."): t for key, t in published().items() if not key.startswith("lm_head")
    }
    return QwenTextEncoder(SHAPE, tensors, vocabulary())


def test_the_text_before_a_prompt_is_the_one_of_training() -> None:
    text = system_prompt()
    assert text.startswith('Given a user prompt, generate an "Enhanced prompt"') and len(text) == 705
    assert text.endswith('Start your response with "Enhanced Prompt:".\n\nUser Prompt:\n')


def test_features_are_those_behind_that_text_with_padding(encoder: QwenTextEncoder) -> None:
    found, padding = encoder.encode(PROMPTS, 12), encoder.padding(PROMPTS, 12)
    assert padding == (9, 12, 9, 9) and isinstance(encoder, PaddingEncoder)
    assert all(text.shape == (12, 128) and text.dtype == torch.float32 for text in found)
    assert found[0] is found[3]
    before = encoder._tokenizer.encode(system_prompt()).ids
    ids = [*before, *encoder.tokenize(PROMPTS[0]), *encoder.special * 9]
    mask = torch.tensor([[1] * (len(before) + 3) + [0] * 9])
    with torch.inference_mode():
        states = tiny_qwen()(torch.tensor([ids]), attention_mask=mask, output_hidden_states=True)
    assert torch.allclose(found[0], states.hidden_states[-1][0, len(before) :], atol=1e-5)
    assert not torch.allclose(found[0][:3], found[2][:3])


def test_long_prompts_are_cut_with_a_warning(encoder: QwenTextEncoder, caplog) -> None:
    (found,) = encoder.encode(["a red circle " * 3], 5)
    assert found.shape == (5, 128) and encoder.padding(["a red circle " * 3], 5) == (0,)
    assert "the prompt has 9 tokens; this model reads 5" in caplog.text
    assert len(encoder.encode(["a"])[0]) == MAX_TOKENS


def test_a_file_is_recognised_and_read(tmp_path: Path) -> None:
    loaded = load_text_encoder(write_qwen(tmp_path / "qwen"), dtype=torch.float32)
    assert loaded.family == "qwen2" and loaded.config == SHAPE
    checkpoint = prepare({**published(), "visual.blocks.0.w": torch.zeros(2)}, None, "vl")
    assert (checkpoint.kind, checkpoint.family) == ("text_encoder", "qwen2")
    assert "lm_head (1 tensors)" in checkpoint.notes
    (tmp_path / "qwen" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="this text encoder has no vocabulary; expected tokenizer.json in"):
        load_text_encoder(tmp_path / "qwen" / "model.safetensors")


def test_broken_files_are_named() -> None:
    raw = published()
    del raw["model.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointError, match="are missing: layers.1.self_attn.k_proj.bias"):
        prepare(raw, None, "broken")


def test_a_vocabulary_without_padding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocabulary lacks <\|endoftext\|>"):
        tensors = {name: tensor for name, tensor in published().items() if name != "lm_head.weight"}
        QwenTextEncoder(SHAPE, tensors, vocabulary().replace("<|endoftext|>", "<pad>"))


def test_another_width_is_refused_by_both_names(encoder: QwenTextEncoder) -> None:
    with pytest.raises(ValueError, match="the text encoder gives 128 channels; this transformer was trained"):
        check_text(tiny_hart(), encoder)
