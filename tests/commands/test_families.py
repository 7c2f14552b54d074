"""``generate``, ``compare`` and ``calibrate`` on VAR and STAR, and the files that they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from stagevar_core.commands.main import main
from stagevar_core.conditioning.labels import spread_classes
from stagevar_core.pipeline import EMBEDDED, Pipeline
from tests.support import tiny_families as tiny
from tests.support.tiny_star import write_vocabulary


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny files with the published names of their tensors."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_families(folder)
    write_vocabulary(folder / "text_encoders" / "tokenizer")
    return folder


def files(models: Path, family: str) -> list[str]:
    """The options that name the files of a family."""
    transformer = tiny.VAR_FILE if family == "var" else tiny.STAR_FILE
    options = ["--transformer", str(models / "diffusion_models" / transformer)]
    options += ["--tokenizer", str(models / "vae" / tiny.TOKENIZER_FILE)]
    return options + ["--text-encoder", str(models / "text_encoders" / tiny.CLIP_FILE)]


def said(capsys: pytest.CaptureFixture) -> str:
    """The one line with which a command refuses."""
    error = capsys.readouterr().err
    return next(line for line in error.splitlines() if line.startswith("error: "))


SIZE = ["--width", "256"]  # a STAR file of ten scales has two


@pytest.mark.parametrize(("family", "prompt"), [("var", "3"), ("star", "a red circle")])
def test_generate_draws_with_and_without_a_preset(models: Path, tmp_path: Path, family: str, prompt: str):
    for preset in ("off", "balanced"):
        out = tmp_path / f"{preset}.png"
        command = ["generate", "--prompt", prompt, "--preset", preset, "--out", str(out), *SIZE]
        assert main([*command, *files(models, family)]) == 0
        assert Image.open(out).size == (256, 256) and np.asarray(Image.open(out)).std() > 1


def test_compare_takes_classes(models: Path, tmp_path: Path) -> None:
    """Without prompts, classes stand in for the captions of the built-in model."""
    found, options = tmp_path / "found.json", ["--presets", "balanced", "--batch", "2"]
    command = ["compare", "--prompts", "3", "--out", str(tmp_path / "out"), "--json", str(found), *options]
    assert main([*command, *files(models, "var")]) == 0
    values = json.loads(found.read_text(encoding="utf-8"))
    assert list(values["variants"]) == ["off", "balanced"]
    assert values["captions"] == ["0", "3", "6"]
    listed = tmp_path / "classes.txt"
    listed.write_text("9\n4\n", encoding="utf-8")
    command = ["compare", "--prompts", str(listed), "--out", str(tmp_path / "own"), "--presets", "fast"]
    assert main([*command, *files(models, "var"), "--grid", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").is_file()


def test_compare_takes_texts_for_star(models: Path, tmp_path: Path) -> None:
    command = ["compare", "--prompts", "2", "--out", str(tmp_path / "out"), "--presets", "balanced", *SIZE]
    assert main([*command, *files(models, "star")]) == 0


@pytest.mark.parametrize("family", ["var", "star"])
def test_calibrate_measures_any_family(models: Path, tmp_path: Path, family: str) -> None:
    out, picture = tmp_path / "schedule.json", tmp_path / "made.png"
    command = ["calibrate", "--limit", "1", "--chunks", "2", "--out", str(out), *SIZE]
    assert main([*command, *files(models, family)]) == 0
    measured = json.loads(out.read_text(encoding="utf-8"))["measured"]
    assert len(measured["schedule"]) == 10
    assert measured["curves"]["bit_agreement"]["mean"] == [None] * 10  # there are no bits
    command = ["generate", "--prompt", "1", "--preset", "balanced", "--schedule", str(out), *SIZE]
    assert main([*command, "--out", str(picture), *files(models, family)]) == 0


def test_classes_are_spread_evenly() -> None:
    assert spread_classes(4, 1000) == ["0", "250", "500", "750"]
    assert spread_classes(5, 3) == ["0", "1", "2", "0", "1"]


@pytest.mark.parametrize("command", ["compare", "calibrate"])
def test_a_class_that_is_not_known_is_refused_before_anything_is_drawn(
    models: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(Pipeline, "encode", lambda *arguments: pytest.fail("something was drawn"))
    listed = tmp_path / "classes.txt"
    listed.write_text("1\n2\n10\n", encoding="utf-8")
    out = str(tmp_path / "out.json")
    assert main([command, "--prompts", str(listed), "--out", out, *files(models, "var")]) == 2
    assert "the class is 10; this model knows the numbers 0 to 9" in said(capsys)


# -------------------------------------------------------------------------------------- what does not fit


def refused(options: list[str], tmp_path: Path, capsys, monkeypatch, *words: str) -> None:
    """``generate`` says why in one line, and no module was built of any file."""
    monkeypatch.setattr(
        "stagevar_core.pipeline.build", lambda *given, **options: pytest.fail("a model was built")
    )
    monkeypatch.setattr(
        "stagevar_core.pipeline.load_text_encoders",
        lambda *given, **options: pytest.fail("an encoder was read"),
    )
    assert main(["generate", "--prompt", "1", "--out", str(tmp_path / "x.png"), *options]) == 2
    message = said(capsys)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("family", ["var", "star"])
def test_a_tokenizer_of_another_family_is_refused(models, tmp_path, capsys, monkeypatch, family: str) -> None:
    options = files(models, family)
    options[3] = str(EMBEDDED["tokenizer"])
    refused(options, tmp_path, capsys, monkeypatch, "is of the family infinity, expected var", "README")


def test_their_tokenizer_is_refused_by_infinity(models, tmp_path, capsys, monkeypatch) -> None:
    options = ["--tokenizer", str(models / "vae" / tiny.TOKENIZER_FILE)]
    refused(options, tmp_path, capsys, monkeypatch, "is of the family var, expected infinity")


def test_files_in_each_others_places_are_refused(models, tmp_path, capsys, monkeypatch) -> None:
    options = files(models, "var")
    options[1], options[3] = options[3], options[1]
    refused(options, tmp_path, capsys, monkeypatch, "this is a VAR image tokenizer, expected a transformer")
    options = files(models, "star")
    options[3] = options[5]
    refused(
        options, tmp_path, capsys, monkeypatch, "this is a CLIP text encoder, expected an image tokenizer"
    )


def test_a_tokenizer_with_another_codebook_is_refused(models, tmp_path, capsys, monkeypatch) -> None:
    small = dict(load_file(models / "vae" / tiny.TOKENIZER_FILE))
    small["quantize.embedding.weight"] = small["quantize.embedding.weight"][:-1].clone()
    small.pop("quantize.ema_vocab_hit_SV", None)
    save_file(small, tmp_path / "small.safetensors")
    options = files(models, "star")
    options[3] = str(tmp_path / "small.safetensors")
    refused(options, tmp_path, capsys, monkeypatch, "it has 23 codes, the transformer predicts 24")


def test_a_file_of_which_a_part_is_missing_is_refused(models, tmp_path, capsys, monkeypatch) -> None:
    """A STAR file with half a sampler network is none without it."""
    tensors = dict(load_file(models / "diffusion_models" / tiny.STAR_FILE))
    tensors["head_logits2.weight"] = tensors["head_logits.weight"].clone()
    save_file(tensors, tmp_path / "half.safetensors")
    options = files(models, "star")
    options[1] = str(tmp_path / "half.safetensors")
    refused(options, tmp_path, capsys, monkeypatch, "not a complete STAR transformer")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("10", "the class is 10; this model knows the numbers 0 to 9"),
        ("-2", "the class is -2"),
        ("a red circle", "this model has no names for its classes, give a number from 0 to 9"),
    ],
)
def test_a_text_for_a_class_model_is_refused(models, tmp_path, capsys, prompt: str, words: str) -> None:
    command = ["generate", f"--prompt={prompt}", "--out", str(tmp_path / "x.png"), *files(models, "var")]
    assert main(command) == 2
    assert words in said(capsys) and not (tmp_path / "x.png").exists()


def test_an_encoder_of_another_kind_is_refused(models, tmp_path, capsys) -> None:
    options = files(models, "star")
    options[5] = str(EMBEDDED["text_encoder"])
    assert main(["generate", "--prompt", "1", "--out", str(tmp_path / "x.png"), *options]) == 2
    assert "channels; this transformer was trained on 64" in said(capsys)


def test_an_encoder_without_its_vocabulary_is_refused(models, tmp_path, capsys) -> None:
    options = files(models, "star")
    options[5] = shutil.copy(options[5], tmp_path / tiny.CLIP_FILE)
    assert main(["generate", "--prompt", "1", "--out", str(tmp_path / "x.png"), *map(str, options)]) == 2
    assert "this text encoder has no vocabulary" in said(capsys)
