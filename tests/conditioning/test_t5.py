"""The T5 path without ComfyUI: vocabulary, truncation, equal-length batches and broken files."""

import logging

import pytest
import torch
from transformers import T5EncoderModel

from stagevar_core.conditioning.encoder import default_text_dtype
from stagevar_core.conditioning.t5 import T5EncoderConfig, T5TextEncoder, read_tokenizer
from tests.support.tiny_files import TEXT as CONFIG
from tests.support.tiny_files import WORDS, tiny_t5, vocabulary


@pytest.fixture(scope="module")
def reference() -> T5EncoderModel:
    return tiny_t5()


@pytest.fixture(scope="module")
def encoder(reference) -> T5TextEncoder:
    return T5TextEncoder(CONFIG, reference.state_dict(), vocabulary())


def test_equals_transformers_with_padding_and_mask(reference, encoder):
    prompts = ["a red circle", "a red circle left of a blue square", ""]
    features = encoder.encode(prompts)
    ids = [encoder.tokenize(prompt) for prompt in prompts]
    assert [len(row) for row in features] == [len(tokens) for tokens in ids] == [4, 9, 1]
    padded = torch.tensor([tokens + [0] * (9 - len(tokens)) for tokens in ids])
    mask = torch.tensor([[1] * len(tokens) + [0] * (9 - len(tokens)) for tokens in ids])
    with torch.no_grad():
        expected = reference(input_ids=padded, attention_mask=mask).last_hidden_state
    for row, tokens, wanted in zip(features, ids, expected, strict=True):
        assert row.dtype == torch.float32
        torch.testing.assert_close(row, wanted[: len(tokens)], atol=1e-5, rtol=1e-5)


def test_empty_prompt_is_the_end_token(encoder):
    assert encoder.tokenize("") == [WORDS.index("</s>")]


def test_long_prompt_is_cut_with_a_warning(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        ids = encoder.tokenize("red " * 5000)
    assert len(ids) == 512 and ids[-1] == WORDS.index("</s>") and ids[-2] == WORDS.index("red")
    assert "5001 tokens" in caplog.text and "512" in caplog.text


def test_text_limit_of_the_transformer(encoder):
    assert len(encoder.encode(["red " * 50], max_tokens=6)[0]) == 6


def test_a_prompt_does_not_depend_on_its_batch(encoder):
    alone = encoder.encode(["a blue square"])[0]
    together = encoder.encode(["a red circle", "a blue square", "a blue square", "red"])
    torch.testing.assert_close(together[1], alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together[2], together[1])


def test_padding_and_truncation_of_the_file_are_ignored(reference):
    encoder = T5TextEncoder(CONFIG, reference.state_dict(), vocabulary(length=8))
    assert len(encoder.tokenize("a red circle left of a square")) == 8
    assert len(encoder.tokenize("red")) == 2


def test_storage_dtype_does_not_decide_the_compute_dtype(reference):
    half = {name: tensor.half() for name, tensor in reference.state_dict().items()}
    encoder = T5TextEncoder(CONFIG, half, vocabulary())
    assert encoder.dtype == torch.float32
    assert next(encoder.model.parameters()).dtype == torch.float32
    assert default_text_dtype("cuda") == torch.bfloat16


def test_config_survives_a_round_trip_and_foreign_entries():
    assert T5EncoderConfig.from_dict({**CONFIG.to_dict(), "dropout_rate": 0.1}) == CONFIG
    assert T5EncoderConfig().width == 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.final_layer_norm.weight"), "lacks 1 tensors"),
        (lambda t: t.update({"decoder.x": torch.zeros(1)}), "decoder.x"),
        (lambda t: t.update({"shared.weight": torch.zeros(40, 8)}), r"\(40, 8\), expected \(40, 24\)"),
    ],
)
def test_wrong_tensors_are_refused(reference, change, message):
    tensors = dict(reference.state_dict())
    change(tensors)
    with pytest.raises(ValueError, match=message):
        T5TextEncoder(CONFIG, tensors, vocabulary())


def test_wrong_vocabulary_is_refused(reference):
    with pytest.raises(ValueError, match="tokenizers JSON"):
        T5TextEncoder(CONFIG, reference.state_dict(), "{}")
    large = T5EncoderConfig(**{**CONFIG.to_dict(), "vocab_size": 5})
    weights = {**reference.state_dict(), "shared.weight": torch.zeros(5, CONFIG.d_model)}
    with pytest.raises(ValueError, match="10 tokens"):
        T5TextEncoder(large, weights, vocabulary())


def test_vocabulary_is_found_next_to_the_file_or_in_the_folder(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.touch()
    with pytest.raises(ValueError, match=r"tokenizer\.json or spiece\.model"):
        read_tokenizer(weights)
    (tmp_path / "tokenizer.json").write_text(vocabulary(), encoding="utf-8")
    assert read_tokenizer(weights) == read_tokenizer(tmp_path) == vocabulary()


def test_any_string_is_a_prompt(encoder):
    for prompt in ("red\x00blue", "\udcff", "\N{GRINNING FACE}" * 3, "\n\t "):
        assert encoder.tokenize(prompt)[-1] == WORDS.index("</s>")
