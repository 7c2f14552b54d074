"""Two CLIPs side by side: features, end tokens, files, and what makes no pair."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stagevar_core.checkpoints import CheckpointError, prepare
from stagevar_core.checkpoints.text_encoders import load_text_encoders
from stagevar_core.conditioning.clip import CLIPEncoderConfig, CLIPTextEncoder, read_tokenizer
from stagevar_core.conditioning.clip_pair import CLIPPair
from stagevar_core.models.companions import check_text
from stagevar_core.pipeline import Pipeline
from stagevar_core.schedule import SquareTable
from tests.support.official_star import clip_text
from tests.support.tiny_files import write_models
from tests.support.tiny_star import TEXT, tiny_clip, write_vocabulary
from tests.support.tiny_switti import tiny_switti
from tests.support.tiny_var import tiny_vq

SMALL, LARGE = TEXT, replace(TEXT, hidden_size=128, num_attention_heads=2)
WIDTH = SMALL.width + LARGE.width


def encoder(config: CLIPEncoderConfig, folder: Path) -> CLIPTextEncoder:
    return CLIPTextEncoder(config, tiny_clip(config).state_dict(), read_tokenizer(write_vocabulary(folder)))


@pytest.fixture
def pair(tmp_path: Path) -> CLIPPair:
    return CLIPPair([encoder(LARGE, tmp_path / "tokenizer"), encoder(SMALL, tmp_path / "tokenizer")])


def file(path: Path, config: CLIPEncoderConfig) -> Path:
    stem = "text_model."
    state = tiny_clip(config).state_dict()
    tensors = {f"{stem}{name.removeprefix(stem)}": tensor.contiguous() for name, tensor in state.items()}
    tensors.pop(f"{stem}embeddings.position_ids", None)
    save_file(tensors, path)
    return path


def test_features_lie_side_by_side_the_narrower_first(pair: CLIPPair) -> None:
    prompts = ["a red circle", ""]
    features = pair.encode(prompts)
    assert pair.width == WIDTH and [len(text) for text in features] == [5, 2]
    for text, one, other in zip(
        features, pair.first.encode(prompts), pair.second.encode(prompts), strict=True
    ):
        assert torch.equal(text, torch.cat((one, other), dim=-1))
    long = pair.encode(["red " * 100])[0]
    assert len(long) == 77


def test_the_end_token_is_the_librarys_pooled_output(pair: CLIPPair) -> None:
    (text,) = pair.encode(["a red circle"])
    ids = torch.tensor([pair.second.tokenize("a red circle")])
    with torch.inference_mode():
        found = tiny_clip(LARGE)(input_ids=ids)
    assert torch.allclose(text[-1, SMALL.width :], found.pooler_output[0], atol=1e-5)


def test_prompts_to_pictures(pair: CLIPPair) -> None:
    model = tiny_switti(text_width=WIDTH, pooled_width=LARGE.width)
    table = SquareTable.of((1, 2, 3, 4, 5, 6), pixels_per_token=4)
    pipeline = Pipeline(model, tiny_vq(), pair, table, defaults={"cfg": 4.0, "temperature": 1.0})
    pictures = pipeline(["a red circle", "a"], seed=4)
    assert pictures.images.shape == (2, 24, 24, 3)
    alone = pipeline("a", seed=5)
    assert (pictures.images[1].int() - alone.images[0].int()).abs().max() <= 1
    assert not torch.equal(pipeline("a", negative="red", seed=5).images, alone.images)


def test_one_of_two_and_others_are_named(pair: CLIPPair, tmp_path: Path) -> None:
    model = tiny_switti(text_width=WIDTH, pooled_width=LARGE.width)
    for one in (pair.first, pair.second):
        with pytest.raises(
            ValueError, match=f"gives {one.width} channels; .* trained on {WIDTH}, CLIP-L's and"
        ):
            check_text(model, one)
    with pytest.raises(ValueError, match="gives no channels"):
        check_text(model, None)
    check_text(model, pair)
    with pytest.raises(ValueError, match="both text encoders have 64 channels; expected two different ones"):
        CLIPPair([pair.first, pair.first])


def test_files_make_a_pair_in_any_order(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    small, large = file(tmp_path / "l.safetensors", SMALL), file(tmp_path / "g.safetensors", LARGE)
    one, other = load_text_encoders(small, large), load_text_encoders(large, small)
    assert torch.equal(one.encode(["a"])[0], other.encode(["a"])[0]) and one.width == WIDTH
    assert load_text_encoders(small).width == SMALL.width
    with pytest.raises(
        CheckpointError, match=r"l.safetensors and .*l.safetensors: both text encoders have 64"
    ):
        load_text_encoders(small, small)


def test_released_encoders_are_recognised() -> None:
    large = prepare(clip_text(32, width=1280), None, "clip_g")
    assert large.family == "clip" and large.config == CLIPEncoderConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20
    )
    small = prepare(clip_text(12, width=768), None, "clip_l").config
    assert (small.num_attention_heads, small.hidden_act, small.width) == (12, "quick_gelu", 768)
    assert prepare(clip_text(23), None, "star").config == CLIPEncoderConfig()
    assert prepare(clip_text(24), None, "open clip").config == CLIPEncoderConfig()


def test_a_t5_beside_a_clip_is_named(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    small, other = file(tmp_path / "l.safetensors", SMALL), write_models(tmp_path)["text_encoder"]
    with pytest.raises(
        CheckpointError, match=r"this is a t5 text encoder, given together with .*l.safetensors"
    ):
        load_text_encoders(small, other)
