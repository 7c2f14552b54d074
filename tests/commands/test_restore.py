"""The command ``restore``: pictures of every kind, and one line for what cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.official_restorer import TINY, merged, restorer
from tests.support.tiny_files import command, write_models
from tests.support.tiny_restorer import write_small_restorer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_small_restorer(tmp_path_factory.mktemp("restorer"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_a_picture_is_restored(files, picture, tmp_path):
    made = []
    for name, options in (("a", []), ("b", []), ("c", ["--seed", 1]), ("d", ["--overlap", 0, "--scale", 8])):
        out = tmp_path / "new" / f"{name}.png"
        code, said, errors = command(files, "restore", picture, "--out", out, *options)
        assert code == 0, errors
        made.append(np.asarray(Image.open(out)))
        assert said[-1].startswith(str(out))
    assert made[0].shape == (80, 120, 3) and made[3].shape == (160, 240, 3)
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    assert made[0].std() > 1


def test_pictures_of_other_kinds(files, tmp_path):
    for name, image in (
        ("alpha.png", Image.new("RGBA", (9, 40), (255, 0, 0, 128))),
        ("grey.png", Image.new("L", (12, 7), 99)),
        ("palette.gif", Image.new("P", (8, 8))),
        ("one.png", Image.new("RGB", (1, 50))),
    ):
        image.save(tmp_path / name)
        out = tmp_path / f"{name}.out.png"
        code, _, errors = command(files, "restore", tmp_path / name, "--out", out, "--scale", 2)
        assert code == 0, errors
        assert Image.open(out).size == (image.width * 2, image.height * 2)


def test_a_text_needs_its_encoder(files, picture, tmp_path):
    models, outs = write_models(tmp_path), [tmp_path / "with.png", tmp_path / "without.png"]
    code, _, errors = command(files, "restore", picture, "--out", outs[0], "--prompt", "red circle")
    assert code == 2 and "--text-encoder" in errors[-1]
    both = {**files, "text_encoder": models["text_encoder"]}
    assert command(both, "restore", picture, "--out", outs[0], "--prompt", "red circle")[0] == 0
    assert command(files, "restore", picture, "--out", outs[1])[0] == 0
    assert outs[0].read_bytes() != outs[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "0.5"], ("scale is 0.5", "1 to 8")),
        (["--scale", "nan"], ("scale is nan",)),
        (["--overlap", "-1"], ("--overlap", "0 to 256")),
        (["--overlap", "300"], ("--overlap",)),
        (["--seed", "-1"], ("--seed",)),
    ],
)
def test_options_that_cannot_be_used(files, picture, tmp_path, options, words):
    out = tmp_path / "out.png"
    code, _, errors = command(files, "restore", picture, "--out", out, *options)
    assert code == 2 and len(errors) == 1 and not out.exists()
    assert all(word in errors[0] for word in words), errors


def test_files_that_cannot_be_used(files, picture, tmp_path):
    other = write_models(tmp_path)
    save_file(merged(dict(restorer(TINY, rank=4, chunks=2, device="cpu"))), tmp_path / "merged.safetensors")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    out = tmp_path / "out.png"
    for given, source, words in (
        (
            {**files, "transformer": other["transformer"], "tokenizer": other["tokenizer"]},
            picture,
            "not known to restore",
        ),
        ({**files, "transformer": tmp_path / "merged.safetensors"}, picture, "--task restore"),
        ({**files, "tokenizer": other["tokenizer"]}, picture, "does not belong"),
        (files, text, "not a picture"),
        (files, tmp_path / "none.png", "none.png"),
        (files, tmp_path, "not a picture"),
    ):
        code, _, errors = command(given, "restore", source, "--out", out)
        assert code == 2 and len(errors) == 1 and words in errors[0], errors
    code, _, errors = command(files, "restore", picture, "--out", tmp_path / "out.txt")
    assert code == 2 and "image file" in errors[0]
    made = {**files, "text_encoder": other["text_encoder"]}
    code, _, errors = command(made, "generate", "--prompt", "red circle", "--out", out)
    assert code == 2 and len(errors) == 1 and "it restores pictures" in errors[0]


def test_random_states_are_left_alone(files, picture, tmp_path):
    state = torch.random.get_rng_state()
    assert command(files, "restore", picture, "--out", tmp_path / "out.png")[0] == 0
    assert torch.equal(torch.random.get_rng_state(), state)
