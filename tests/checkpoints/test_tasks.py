"""Which weights are which: the user's choice, the converter's metadata, and what contradicts them."""

import logging
from dataclasses import replace

import convert_checkpoint
import pytest
import torch

from stagevar_core.checkpoints import CheckpointError, build, prepare, read, save
from stagevar_core.checkpoints.tasks import TASKS, task_of, with_task
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B
from stagevar_core.models.var import VARConfig
from stagevar_core.schedule import SIDES_256, infinity_aspect_table
from tests.support import official_files as official
from tests.support.official_files import SMALL, small_transformer
from tests.support.official_var import transformer as official_var

VAR = VARConfig.released(2, SIDES_256)


def small(task: str = "auto"):
    return with_task(prepare(small_transformer(), None, "small.pth"), task)


@pytest.mark.parametrize(
    ("config", "task", "side"),
    [
        pytest.param(INFINITY_2B, "edit 512", 512, id="2B-512"),
        pytest.param(INFINITY_8B, "edit 512", 512, id="8B-512"),
        pytest.param(INFINITY_8B, "edit 1024", 1024, id="8B-1024"),
    ],
)
def test_the_published_editing_files_load_whole(config, task: str, side: int) -> None:
    checkpoint = with_task(prepare(official.transformer(config, chunks=8), None, "varedit"), task)
    assert checkpoint.config == replace(config, edits=True) and task_of(checkpoint) == task
    assert checkpoint.trained.image_size(checkpoint.trained.snap(999, 333)) == (side, side)
    assert (checkpoint.defaults["cfg"], checkpoint.defaults["temperature"]) == (3.0, 0.1)
    module = build(checkpoint, dtype=torch.bfloat16)
    assert module.edits and not checkpoint.tensors


def test_without_a_word_weights_make_pictures_and_the_log_says_so(caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert task_of(small()) == task_of(small("generate")) == "generate"
    assert "small.pth: taken for weights that make pictures" in caplog.text
    assert "edits" not in small().header().config


@pytest.mark.parametrize("task", ["edit 512", "edit 1024"])
def test_the_converter_writes_it_down(task: str, tmp_path) -> None:
    torch.save(dict(small_transformer()), tmp_path / "raw.pth")
    assert convert_checkpoint.main([str(tmp_path / "raw.pth"), "--task", task]) == 0
    again = prepare(*read(tmp_path / "raw.safetensors"))
    assert again.config == replace(SMALL, edits=True) and again.defaults["temperature"] == 0.1
    assert task_of(with_task(again)) == task_of(with_task(again, task)) == task
    other = next(name for name in TASKS if name not in ("auto", task))
    with pytest.raises(CheckpointError, match=f"task is '{other}', but its metadata says '{task}'"):
        with_task(again, other)


def test_weights_of_another_size_keep_theirs(tmp_path) -> None:
    checkpoint = small("edit 512")
    tiny = replace(checkpoint, trained=infinity_aspect_table(8).restrict([1.0], ["0.06M"]))
    save(tmp_path / "own.safetensors", tiny.tensors, tiny.header())
    assert task_of(with_task(prepare(*read(tmp_path / "own.safetensors")))) == "edit 128"


def test_other_families_and_unknown_tasks_are_refused() -> None:
    with pytest.raises(CheckpointError, match="family var do not edit pictures"):
        with_task(prepare(official_var(VAR), None, "var.pth", kind="transformer"), "edit 512")
    with pytest.raises(CheckpointError, match="task is 'paint'; expected one of"):
        small("paint")


def test_a_bad_entry_is_refused(tmp_path) -> None:
    checkpoint = small()
    header = replace(checkpoint.header(), config={**checkpoint.config.to_dict(), "edits": "yes"})
    save(tmp_path / "bad.safetensors", checkpoint.tensors, header)
    with pytest.raises(CheckpointError, match="config entry edits"):
        prepare(*read(tmp_path / "bad.safetensors"))
