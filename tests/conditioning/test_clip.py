"""The CLIP path without ComfyUI: vocabulary, truncation, equality with the padded official run, files."""

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from stagevar_core.checkpoints import CheckpointError, load_text_encoder, prepare
from stagevar_core.conditioning.clip import CLIPEncoderConfig, CLIPTextEncoder, read_tokenizer
from stagevar_core.models.companions import check_text
from tests.support.official_star import clip_text
from tests.support.tiny_star import TEXT, tiny_clip, tiny_star, write_vocabulary

PROMPTS = ("a red circle", "a red circle's a red red circle", "", "a")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("clip") / "tokenizer")


@pytest.fixture(scope="module")
def reference():
    return tiny_clip()


@pytest.fixture(scope="module")
def encoder(reference, vocabulary):
    return CLIPTextEncoder(TEXT, reference.state_dict(), read_tokenizer(vocabulary))


def test_byte_pairs_are_those_of_the_published_tokenizer(vocabulary, encoder):
    official = CLIPTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"))
    for prompt in (*PROMPTS, "A  RED\n circle", "red 12 circle's"):
        assert encoder.tokenize(prompt) == official(prompt).input_ids


def test_features_equal_the_padded_and_masked_run(reference, encoder):
    features, ids = encoder.encode(PROMPTS), [encoder.tokenize(prompt) for prompt in PROMPTS]
    padded = torch.tensor([row + [0] * (77 - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (77 - len(row)) for row in ids])
    with torch.no_grad():
        expected = reference(input_ids=padded, attention_mask=mask)
    for index, row in enumerate(features):
        assert row.dtype == torch.float32 and len(row) == len(ids[index])
        torch.testing.assert_close(row, expected.last_hidden_state[index, : len(row)], atol=1e-5, rtol=1e-5)
        # The pooled text that STAR starts from is the state of the end token.
        torch.testing.assert_close(row[-1], expected.pooler_output[index], atol=1e-5, rtol=1e-5)


def test_long_prompt_is_cut_with_a_warning(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        ids = encoder.tokenize("red " * 500, max_tokens=512)
    assert len(ids) == 77 and ids[0] == encoder.tokenize("")[0] and ids[-1] == encoder.tokenize("")[1]
    assert "502 tokens" in caplog.text and "77" in caplog.text


@pytest.mark.parametrize("place", [".", "tokenizer", "../tokenizer"])
def test_the_vocabulary_is_found_where_published_files_have_it(place, tmp_path, vocabulary, reference):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    shutil.copytree(vocabulary, folder / place, dirs_exist_ok=True)
    save_file(reference.state_dict(), folder / "model.safetensors")
    features = load_text_encoder(folder / "model.safetensors").encode(PROMPTS[:1])
    assert features[0].shape == (5, 64)


def test_files_without_a_usable_vocabulary_are_named(tmp_path, reference, vocabulary):
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected tokenizer.json or vocab.json and merges.txt"):
        load_text_encoder(tmp_path / "model.safetensors")
    broken = shutil.copytree(vocabulary, tmp_path / "tokenizer")
    (broken / "merges.txt").write_text("#version\nq q\n", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read together"):
        load_text_encoder(tmp_path / "model.safetensors")


def test_a_vocabulary_of_another_encoder_is_refused(reference, vocabulary):
    with pytest.raises(ValueError, match="25 tokens, the text encoder 20"):
        smaller = CLIPEncoderConfig(**{**TEXT.to_dict(), "vocab_size": 20})
        CLIPTextEncoder(smaller, tiny_clip(smaller).state_dict(), read_tokenizer(vocabulary))
    with pytest.raises(ValueError, match="lacks 1 tensors .'final_layer_norm.bias'."):
        state = {key: value for key, value in reference.state_dict().items() if "norm.bias" not in key}
        CLIPTextEncoder(TEXT, state, read_tokenizer(vocabulary))


@pytest.mark.parametrize("layers", [23, 24])
def test_the_published_text_encoder_is_recognised(layers):
    checkpoint = prepare(clip_text(layers), None, "clip")
    assert (checkpoint.kind, checkpoint.family) == ("text_encoder", "clip")
    assert checkpoint.config == CLIPEncoderConfig() and checkpoint.trained is None
    dropped = ("last layer, which Stable Diffusion 2.1 leaves out (16 tensors)",)
    assert checkpoint.notes == (dropped if layers == 24 else ())


def test_larger_encoders_are_no_text_encoder_of_star():
    found = prepare(clip_text(32, width=1280), None, "clip-g").config  # it is one of Switti's
    with pytest.raises(ValueError, match="gives 1280 channels; this transformer was trained on 24"):
        check_text(tiny_star(), SimpleNamespace(width=found.width, family="clip"))
    for layers in (25, 31, 33):
        with pytest.raises(CheckpointError, match="looks like a CLIP text encoder"):
            prepare(clip_text(layers, width=1280), None, "clip-g")
