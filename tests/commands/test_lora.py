"""``--lora`` of the commands: merged as the model is loaded, refused in a line."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from stagevar_core.commands.options import lora
from tests.support.lora import random_lora
from tests.support.tiny import tiny_infinity
from tests.support.tiny_files import command, write_models


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_picture_follows_strength_and_order_of_several(files, tmp_path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(random_lora(tiny_infinity(bits=4), alpha=40.0), one)
    save_file(random_lora(tiny_infinity(bits=4), alpha=40.0, seed=1), other)

    def picture(*loras: object) -> np.ndarray:
        out = tmp_path / "picture.png"
        options = [part for each in loras for part in ("--lora", str(each))]
        status, _, errors = command(files, "generate", "--prompt", "red", "--out", str(out), *options)
        assert status == 0, errors
        return np.asarray(Image.open(out))

    plain, whole = picture(), picture(one)
    assert np.array_equal(picture(f"{one}:0"), plain) and not np.array_equal(whole, plain)
    assert np.array_equal(picture(f"{one}:1.0"), whole) and not np.array_equal(picture(one, other), whole)


def test_a_file_that_is_no_lora_and_a_strength_that_is_none_are_refused_in_a_line(files, tmp_path):
    out = str(tmp_path / "picture.png")
    for option, expected in (
        (str(files["transformer"]), "it has the tensors of an Infinity transformer and no LoRA"),
        (str(tmp_path / "gone.safetensors"), "gone.safetensors"),
        (f"{files['transformer']}:much", "much"),
        (f"{files['transformer']}:101", "expected FILE or FILE:STRENGTH with a number from -100 to 100"),
    ):
        status, _, errors = command(files, "generate", "--prompt", "red", "--out", out, "--lora", option)
        assert status and expected in errors[-1], errors


def test_a_colon_in_a_name_is_kept_where_such_a_file_is_there(tmp_path):
    odd = tmp_path / "style:2"
    odd.touch()
    assert lora(str(odd)) == (odd, 1.0) and lora(f"{odd}:-0.5") == (odd, -0.5)
    assert lora("style.safetensors") == (lora("style.safetensors:1")[0], 1.0)
