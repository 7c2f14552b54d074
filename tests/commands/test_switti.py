"""``generate``, ``compare`` and ``calibrate`` on Switti, with two text encoders, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagevar_core.commands.main import main
from tests.support import tiny_switti_files as tiny
from tests.support.tiny_star import write_vocabulary


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny files with the published names of their tensors."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_switti(folder)
    write_vocabulary(folder / "text_encoders" / "tokenizer")
    return folder


def files(models: Path, name: str = "Switti", encoders: tuple[str, ...] = (tiny.SMALL_FILE, tiny.LARGE_FILE)):
    """The options that name the files."""
    options = ["--transformer", str(models / "diffusion_models" / tiny.FILES[name])]
    options += ["--tokenizer", str(models / "vae" / tiny.TOKENIZER_FILE)]
    for option, file in zip(("--text-encoder", "--text-encoder-2"), encoders, strict=False):
        options += [option, str(models / "text_encoders" / file)]
    return options


@pytest.mark.parametrize("name", tiny.FILES)
def test_generate_draws_with_and_without_a_preset(models: Path, tmp_path: Path, name: str) -> None:
    for preset in ("off", "balanced"):
        out = tmp_path / f"{preset}.png"
        command = ["generate", "--prompt", "a red circle", "--preset", preset, "--out", str(out)]
        assert main([*command, *files(models, name)]) == 0
        assert Image.open(out).size == (256, 256) and np.asarray(Image.open(out)).std() > 1


def test_compare_and_calibrate_take_texts(models: Path, tmp_path: Path) -> None:
    command = ["compare", "--prompts", "2", "--out", str(tmp_path / "out"), "--presets", "balanced"]
    assert main([*command, *files(models)]) == 0
    out, picture = tmp_path / "schedule.json", tmp_path / "made.png"
    assert main(["calibrate", "--limit", "1", "--chunks", "2", "--out", str(out), *files(models)]) == 0
    assert len(json.loads(out.read_text(encoding="utf-8"))["measured"]["schedule"]) == 10
    command = ["generate", "--prompt", "1", "--preset", "balanced", "--schedule", str(out)]
    assert main([*command, "--out", str(picture), *files(models)]) == 0


@pytest.mark.parametrize(
    ("encoders", "words"),
    [
        (
            (tiny.SMALL_FILE,),
            ("gives 64 channels", "trained on 192", "CLIP-L's and CLIP-bigG's", "give both"),
        ),
        ((tiny.LARGE_FILE,), ("gives 128 channels", "trained on 192")),
        ((tiny.SMALL_FILE, tiny.SMALL_FILE), ("have 64 channels; expected two different ones",)),
    ],
)
def test_what_is_no_pair_is_refused(models: Path, tmp_path: Path, capsys, encoders, words) -> None:
    out = ["--out", str(tmp_path / "x.png")]
    assert main(["generate", "--prompt", "a", *out, *files(models, encoders=encoders)]) == 2
    message = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert all(word in message for word in words), message
