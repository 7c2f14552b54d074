"""A class-conditional file that names its classes and its squares."""

import json
from dataclasses import replace

import pytest
import torch

from stagevar_core.autoencoders.vq import VQTokenizer, VQTokenizerConfig
from stagevar_core.checkpoints import CheckpointError, prepare, read
from stagevar_core.checkpoints.header import KEY, Header, dump, parse
from stagevar_core.checkpoints.save import save
from stagevar_core.conditioning.labels import class_index
from stagevar_core.models.var import VAR, VARConfig
from stagevar_core.pipeline import Pipeline
from stagevar_core.schedule import SquareTable

SIDES, NAMES = (1, 2, 4), ("cat", "sailing boat", "rocket boat")
TABLE = SquareTable.of(SIDES, pixels_per_token=4)
CONFIG = VARConfig(2, 16, 2, 32, SIDES, classes=3, vocab=12, dim=4, shared=True)
TOKENIZER = VQTokenizerConfig(vocab=12, dim=4, width=4, multipliers=(1, 1, 2), blocks=1, groups=2)


def written(path, module, header):
    torch.manual_seed(0)
    weights = {name: torch.randn_like(value) * 0.1 for name, value in module.state_dict().items()}
    save(path, weights, header)
    return path


@pytest.fixture
def files(tmp_path):
    model = Header("transformer", "var", CONFIG.to_dict(), trained=TABLE, classes=NAMES)
    codes = Header("tokenizer", "var", TOKENIZER.to_dict(), trained=TABLE)
    return (
        written(tmp_path / "model.safetensors", VAR(CONFIG), model),
        written(tmp_path / "codes.safetensors", VQTokenizer(TOKENIZER), codes),
    )


def test_the_header_keeps_names_and_squares():
    header = Header("transformer", "var", {}, trained=TABLE, classes=NAMES, notes={"trained on": "drawings"})
    found = parse(dump(header), "file")
    assert found is not None and found.classes == NAMES and found.trained == TABLE
    assert json.loads(dump(header)[KEY])["trained on"] == "drawings"


@pytest.mark.parametrize(
    "classes", ["cat", ["cat", "Cat"], [""], [" cat"], ["12"], [3], ["a\nb"], ["x" * 300], {"cat": 1}]
)
def test_names_that_cannot_be_told_apart_are_refused(classes):
    values = {"format": 1, "kind": "transformer", "family": "var", "config": {}, "classes": classes}
    with pytest.raises(CheckpointError, match="classes"):
        parse({KEY: json.dumps(values)}, "file")


@pytest.mark.parametrize("sides", [[], [[]], [[2, 1]], [[1, 2.5]], [[1, 99999]], "12", [3], [[1, True]]])
def test_sides_that_are_no_schedule_are_refused(sides):
    trained = {"sides": sides, "pixels_per_token": 8}
    values = {"format": 1, "kind": "transformer", "family": "var", "config": {}, "trained": trained}
    with pytest.raises(CheckpointError, match=r"trained\.sides"):
        parse({KEY: json.dumps(values)}, "file")


def test_a_pipeline_takes_the_names_of_its_file(files):
    pipeline = Pipeline.load(*files, device="cpu")
    assert pipeline.class_names == NAMES
    assert pipeline.trained.image_size(pipeline.schedule()) == (16, 16)
    assert torch.equal(pipeline("sailing", seed=1).images, pipeline("1", seed=1).images)
    with pytest.raises(ValueError, match="part of several names.*sailing boat"):
        pipeline("boat")
    with pytest.raises(ValueError, match="3 names of this model's classes"):
        pipeline.measurable(["goldfish"], made_up=False)


def test_a_name_for_every_class_or_none(files, tmp_path):
    checkpoint = prepare(*read(files[0]), kind="transformer")
    assert checkpoint.header().classes == NAMES
    header = replace(checkpoint.header(), classes=NAMES[:2])
    path = written(tmp_path / "short.safetensors", VAR(CONFIG), header)
    with pytest.raises(CheckpointError, match="names 2 classes, the model has 3"):
        prepare(*read(path), kind="transformer")


def test_without_names_a_thousand_classes_are_those_of_imagenet():
    assert class_index("golden retriever") == 207
    assert class_index("rocket", 3, NAMES) == 2 and class_index("CAT", 3, NAMES) == 0
    assert class_index("", 3, NAMES) == class_index("-1", 3, NAMES) == -1
    with pytest.raises(ValueError, match="no names"):
        class_index("cat", 3)
