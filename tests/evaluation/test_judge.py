"""The classifier that reads pictures, and the distance between two sets of them."""

import pytest
import torch

from stagevar_core.checkpoints import CheckpointError
from stagevar_core.checkpoints.header import Header
from stagevar_core.checkpoints.save import save
from stagevar_core.evaluation.judge import Judge, JudgeConfig, Moments, frechet_distance

NAMES = ("cat", "dog", "rocket")


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge(JudgeConfig(width=4, classes=3), NAMES).eval()


def written(judge, path, **changes):
    header = Header("judge", "artwork", judge.config.to_dict(), classes=NAMES)
    save(path, {**judge.state_dict(), **changes}, header)
    return path


def test_a_written_judge_reads_the_same(judge, tmp_path):
    again = Judge.load(written(judge, tmp_path / "judge.safetensors"))
    images = torch.randint(256, (3, 96, 96, 3), dtype=torch.uint8)
    assert again.names == NAMES
    for mine, its in zip(judge.read(images), again.read(images, batch=2), strict=True):
        assert torch.allclose(mine, its, atol=1e-5)


def test_the_size_of_a_picture_changes_little(judge):
    images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    larger = images.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert torch.allclose(judge.read(images)[0], judge.read(larger)[0], atol=1e-5)


def test_other_files_are_refused(judge, tmp_path):
    path = tmp_path / "other.safetensors"
    save(path, judge.state_dict(), Header("tokenizer", "var", {}))
    with pytest.raises(CheckpointError, match="no judge"):
        Judge.load(path)
    written(judge, path, **{"head.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="not those of a judge"):
        Judge.load(path)


def test_equal_sets_have_no_distance_and_a_shift_has_its_square():
    torch.manual_seed(0)
    a = torch.randn(400, 6)
    same = Moments.of(a)
    assert frechet_distance(same, same) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(same, Moments.of(a + 2.0)) == pytest.approx(6 * 4.0, rel=1e-3)
    assert frechet_distance(same, Moments.of(2 * a)) > 1


def test_a_file_says_what_real_pictures_are_like(judge, tmp_path):
    features = torch.randn(50, judge.head.in_features)
    assert judge.distance(features) is None  # nobody said it yet
    found = Judge.load(written(judge, tmp_path / "judge.safetensors", **Moments.of(features).tensors()))
    assert found.distance(features) == pytest.approx(0.0, abs=1e-3)
    assert found.distance(features + 1.0) == pytest.approx(judge.head.in_features, rel=1e-3)
    assert found.distance(features[:1]) is None  # one picture has no spread
