"""Changed words through the pipeline and the command, on the built-in model and tiny files."""

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_core.pipeline import Pipeline
from tests.support.tiny_files import command, write_models

BEFORE, AFTER = "a red circle on a white background", "a blue circle on a white background"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.embedded(dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def red(pipeline: Pipeline) -> np.ndarray:
    return pipeline(BEFORE, seed=5).images[0].numpy()


def test_a_word_changes_the_colour_and_leaves_the_corners(pipeline: Pipeline, red: np.ndarray) -> None:
    found = pipeline(AFTER, seed=5, batch=2, steps=True, picture=red, caption=BEFORE)
    assert found.images.shape == (2, 128, 128, 3) and found.steps[6].shape == found.images.shape
    for image in found.images.numpy().astype(int):
        assert image[60:68, 60:68, 2].mean() > 150 > 100 > image[60:68, 60:68, 0].mean()
        assert abs(image[:16, :16] - red[:16, :16].astype(int)).mean() < 4


def test_the_same_words_keep_the_picture_as_the_tokenizer_has_it(pipeline: Pipeline, red: np.ndarray) -> None:
    found = pipeline(BEFORE, seed=9, picture=red, caption=BEFORE).images[0].numpy()
    assert abs(found.astype(int) - red.astype(int)).mean() < 8


def test_a_picture_of_another_shape_takes_the_nearest_trained_size(pipeline: Pipeline) -> None:
    wide = np.full((40, 90, 4), 200, np.uint8)
    assert pipeline(AFTER, picture=wide, caption=BEFORE).images.shape[0] == 1
    with pytest.raises(ValueError, match="the picture to edit has the shape"):
        pipeline(AFTER, picture=np.zeros((4, 4), np.uint8), caption=BEFORE)


def test_the_command_changes_a_file(tmp_path) -> None:
    files = write_models(tmp_path)
    Image.fromarray(np.full((50, 80, 4), 90, np.uint8)).save(tmp_path / "in.png")
    ask = ("generate", "--prompt", AFTER, "--change", tmp_path / "in.png", "--out", tmp_path / "out.png")
    code, out, _ = command(files, *ask, "--from", BEFORE)
    assert code == 0 and out and Image.open(tmp_path / "out.png").size[0] > 0
    for wrong, said in (
        ((), "--change and --from belong together"),
        (("--from", BEFORE, "--edit", tmp_path / "in.png"), "do not go with --change"),
        (("--from", BEFORE, "--negative", "red"), "do not go with --change"),
        (("--from", BEFORE, "--width", 100), "do not go with --change"),
        (("--from", BEFORE, "--cfg", 1), "cfg is 1"),
    ):
        code, _, err = command(files, *ask, *wrong)
        assert code == 2 and said in err[-1] and len(err) == 1, (wrong, err)


def test_editing_weights_are_refused(tmp_path) -> None:
    files = write_models(tmp_path, edits=True)
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "in.png")
    ask = ("generate", "--prompt", AFTER, "--change", tmp_path / "in.png", "--from", BEFORE)
    code, _, err = command(files, *ask, "--out", tmp_path / "out.png")
    assert code == 2 and "edit a picture and none is connected" in err[-1]
