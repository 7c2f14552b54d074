"""A picture through an editing pipeline and its command, on tiny random files."""

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_core.conditioning.picture import from_square, to_square
from stagevar_core.pipeline import Pipeline
from tests.support.tiny_files import command, write_models

PROMPT = "make the circle blue"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    return write_models(tmp_path_factory.mktemp("editing"), edits=True)


@pytest.fixture(scope="module")
def pipeline(files) -> Pipeline:
    return Pipeline.load(*files.values(), device="cpu")


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(90, 40), (1, 70), (33, 1), (128, 128), (300, 500)])
def test_results_have_the_size_of_their_picture(pipeline, size: tuple[int, int]) -> None:
    found = pipeline(PROMPT, seed=3, batch=2, steps=True, picture=picture(*size))
    assert found.images.shape == (2, *size, 3) and found.seeds == (3, 4)
    assert found.steps[6].shape == found.images.shape
    assert found.generation.trace.prefix is not None


def test_the_picture_counts_and_its_transparency_does_not(pipeline) -> None:
    clear = picture(64, 64, 4)
    one, two = (pipeline(PROMPT, picture=each).images for each in (clear, clear[..., :3]))
    assert torch.equal(one, two)
    assert not torch.equal(one, pipeline(PROMPT, picture=255 - clear).images)


def test_every_preset_edits(pipeline) -> None:
    assert pipeline(PROMPT, "red", picture=picture(20, 30)).images.shape == (1, 20, 30, 3)


def test_a_wide_picture_comes_back_where_it_was() -> None:
    grey = np.full((10, 8000, 3), 90, dtype=np.uint8)
    square = to_square(grey, 128)
    assert (square[:1, :] < 255).all() and (square[4:] == 255).all()
    assert from_square(square, (10, 8000)).shape == grey.shape


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(pipeline, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the picture to edit has the shape"):
        pipeline(PROMPT, picture=wrong)


def test_weights_that_edit_want_a_picture(pipeline) -> None:
    with pytest.raises(ValueError, match="edit a picture and none is connected"):
        pipeline(PROMPT)


def test_the_command_edits_a_file(files, tmp_path) -> None:
    Image.fromarray(picture(50, 80, 4)).save(tmp_path / "in.png")
    ask = ("generate", "--prompt", PROMPT, "--edit", tmp_path / "in.png", "--out", tmp_path / "out.png")
    code, out, _ = command(files, *ask)
    assert code == 0 and "80 x 50" in out[0]
    assert Image.open(tmp_path / "out.png").size == (80, 50)
    code, _, err = command(files, *ask, "--width", 100)
    assert code == 2 and "do not go with --edit" in err[-1]
    (tmp_path / "in.png").write_bytes(b"none")
    code, _, err = command(files, *ask)
    assert code == 2 and "cannot be read as a picture" in err[-1]


def test_the_command_says_which_weights_edit_nothing(tmp_path) -> None:
    files = write_models(tmp_path)
    Image.fromarray(picture(8, 8)).save(tmp_path / "in.png")
    ask = ("generate", "--prompt", PROMPT, "--edit", tmp_path / "in.png", "--out", tmp_path / "out.png")
    code, _, err = command(files, *ask)
    assert code == 2 and "were not trained to edit one" in err[-1] and len(err) == 1
