"""Who reads pictures back, and the commands on the artwork model, whose judge reads it."""

import json

import numpy as np
import pytest
import torch

from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.commands.main import main
from stagevar_core.embedded import JUDGE
from stagevar_core.evaluation import judged
from stagevar_core.evaluation import report as compare_report
from stagevar_core.evaluation import tables as compare_tables
from stagevar_core.evaluation.compare import Job, compare
from stagevar_core.evaluation.judge import Judge
from stagevar_core.evaluation.reading import JudgeReader, SceneReader, edge_strength, judge_of, reader_of
from stagevar_core.pipeline import Pipeline

ABOUT = {"command": "x", "dtype": "float32", "hardware": {"processor": "p", "threads": 1, "torch": "t"}}
EARLY = {"first five": FirstScales(5), "first six": FirstScales(6)}  # cheap stand-ins for presets


@pytest.fixture(scope="module")
def artwork():
    return Pipeline.embedded(model="artwork", dtype=torch.float32, device="cpu")


def test_readers_are_chosen_by_what_a_model_draws(pipeline, artwork):
    scenes, classes = pipeline.schedule(), artwork.schedule()
    assert isinstance(reader_of(pipeline, ["a red circle"], scenes), SceneReader)
    assert reader_of(pipeline, ["an astronaut"], scenes) is None
    assert isinstance(reader_of(artwork, ["cat"], classes), JudgeReader)
    artwork.class_names, names = artwork.class_names[:-1], artwork.class_names
    try:
        assert judge_of(artwork) is None  # it would read the classes of another model
    finally:
        artwork.class_names = names


def test_edges_are_grey_levels_from_pixel_to_pixel():
    flat = torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)
    ramp = (3 * torch.arange(32)).to(torch.uint8)[None, None, :, None].expand(1, 32, 32, 3)
    assert float(edge_strength(flat)) == 0.0
    assert float(edge_strength(ramp[:, :, :])) == pytest.approx(2 * 3 * 31 / 32, rel=0.01)


def test_a_comparison_has_what_the_judge_reads(artwork):
    job = Job(("cat", "rocket", "7"), batch=2, seed=3)
    pictures: dict[str, list[np.ndarray]] = {}
    keep = lambda name, number, picture: pictures.setdefault(name, []).append(picture)  # noqa: E731
    found = compare(artwork, EARLY, job, keep=keep)
    assert found.tasks is None and set(found.frechet) == {"off", *EARLY}
    judge = Judge.load(JUDGE)
    wanted = [*(judge.names.index(name) for name in ("cat", "rocket")), 7]
    for name, drawn in pictures.items():
        images = torch.from_numpy(np.stack(drawn))
        logits, features = judge.read(images)
        right = logits.argmax(dim=1) == torch.tensor(wanted)
        assert found.measures[name]["top1"].tolist() == right.float().tolist()
        np.testing.assert_allclose(found.measures[name]["edges"], edge_strength(images), rtol=1e-4)
        assert found.frechet[name] == pytest.approx(judge.distance(features), rel=0.01)
    values = json.loads(json.dumps(compare_report.report(found, EARLY, ABOUT, "first five")))
    row = values["variants"]["first six"]
    for measure in ("top1", "edges"):
        own, dense = (found.measures[name][measure].mean() for name in ("first six", "off"))
        assert row[measure]["all"]["mean"] == pytest.approx(own)
        assert row[measure]["all"]["difference"]["mean"] == pytest.approx(own - dense)
        read = compare_report.unpacked(row["pictures"][measure])
        np.testing.assert_allclose(read, found.measures["first six"][measure], atol=0.0006)
    text = compare_tables.markdown(values, "first five")
    assert "| top1 | minus off | edges | minus off | Frechet |" in text and "strict" not in text
    assert "| first five minus | PSNR | SSIM | top1 | edges |" in text


def test_the_score_of_classes(artwork, tmp_path, capsys):
    report, grid = tmp_path / "score.json", tmp_path / "grid.png"
    options = [
        "score",
        "--model",
        "artwork",
        "--prompts",
        "3",
        "--batch",
        "2",
        "--scales",
        "6",
        "--seed",
        "5",
    ]
    assert main([*options, "--json", str(report), "--grid", str(grid), "--dtype", "float32"]) == 0
    values = json.loads(report.read_text(encoding="utf-8"))["variants"]["first 6 scales"]
    found = compare(artwork, EARLY, Job(tuple(artwork.measurable([""] * 3, made_up=True)), seed=5, batch=3))
    assert values["top1"]["mean"] == pytest.approx(found.measures["first six"]["top1"].mean())
    assert values["edges"]["mean"] == pytest.approx(found.measures["first six"]["edges"].mean(), rel=0.01)
    assert "top-1" in capsys.readouterr().out and grid.stat().st_size > 1000


@pytest.mark.parametrize("option", ["--rendered", "--reconstruct", "--edits"])
def test_what_needs_drawings_or_an_editor_is_refused(option, capsys):
    assert main(["score", "--model", "artwork", "--prompts", "1", option]) == 2
    said = capsys.readouterr().err
    assert "need the drawings" in said and "--edits is for models of texts" in said


def test_calibration_measures_its_stages(artwork, tmp_path):
    out = tmp_path / "schedule.json"
    options = ["calibrate", "--model", "artwork", "--limit", "1", "--out", str(out), "--dtype", "float32"]
    assert main(options) == 0
    measured = json.loads(out.read_text(encoding="utf-8"))["measured"]
    assert len(measured["schedule"]) == 10 and measured["schedule"][-1] == [32, 32]


def test_no_pictures_are_no_score():
    reader = JudgeReader(Judge.load(JUDGE))
    nothing = {"top1": np.zeros(0), "edges": np.zeros(0), "features": np.zeros((0, 120))}
    with pytest.raises(ValueError, match="no pictures"):
        judged.summary(reader, nothing)
