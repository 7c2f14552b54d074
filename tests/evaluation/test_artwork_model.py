"""The artwork model that ships: its size, its names, and that its judge reads what it draws."""

import pytest
import torch

from stagevar_core.embedded import ARTWORK, JUDGE
from stagevar_core.evaluation.judge import Judge
from stagevar_core.pipeline import Pipeline
from stagevar_core.schedule import SIDES_512


def test_its_files_are_small():
    assert sum(path.stat().st_size for path in (*ARTWORK.values(), JUDGE)) < 12 * 2**20


def test_model_and_judge_name_the_same_classes():
    pipeline, judge = Pipeline.embedded(model="artwork", device="cpu"), Judge.load(JUDGE)
    assert pipeline.class_names == judge.names and len(judge.names) == judge.config.classes == 150
    assert pipeline.schedule().grids == tuple((side, side) for side in SIDES_512)
    assert pipeline.trained.image_size(pipeline.schedule()) == (256, 256)


@pytest.mark.slow
def test_the_judge_reads_most_of_what_it_draws():
    pipeline, judge = Pipeline.embedded(model="artwork", dtype=torch.float32, device="cpu"), Judge.load(JUDGE)
    labels = list(range(0, 150, 7))
    images = torch.cat([pipeline(str(label), seed=label).images for label in labels])
    logits, _ = judge.read(images)
    right = (logits.argmax(dim=1) == torch.tensor(labels)).float().mean()
    assert right >= 0.75  # .93 on all classes; 22 pictures have a standard error of .06
