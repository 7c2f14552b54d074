"""Calibration: ranks, boundaries, running moments, and a measurement that is taken up again."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.schedule_file import StageSchedule, identity
from stagevar_core.acceleration.schedule_reader import CURVES
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.commands import calibrate as calibrate_command
from stagevar_core.evaluation import calibrate
from stagevar_core.evaluation.calibrate import (
    Calibration,
    Request,
    energy_rank,
    find_boundaries,
)
from stagevar_core.evaluation.moments import Moments
from stagevar_core.pipeline import Pipeline
from tests.support.tiny import randomize, tiny_infinity
from tests.support.tiny_files import command, write_models

PROMPTS = ["a red circle", "blue", "a square left of a circle"]


def tokens(energies: list[float], length: int, width: int) -> torch.Tensor:
    """Centred tokens whose Gram matrices have these eigenvalues, and a mean."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(length, len(energies) + 1, generator=generator, dtype=torch.float64)
    raw[:, 0] = 1.0  # the others become orthogonal to the constant, so that centring changes nothing
    left = torch.linalg.qr(raw)[0][:, 1:]
    right = torch.linalg.qr(torch.randn(width, len(energies), generator=generator, dtype=torch.float64))[0]
    return ((left * torch.tensor(energies).sqrt()) @ right.mT + 3.0).float()


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize(("alpha", "rank"), [(0.5, 1), (0.69, 1), (0.71, 2), (0.89, 2), (0.91, 3), (0.99, 4)])
def test_a_rank_holds_its_share_of_the_energy(shape, alpha, rank) -> None:
    assert energy_rank(tokens([70.0, 20.0, 8.5, 1.5], *shape), alpha) == rank


def test_equal_tokens_have_no_rank() -> None:
    assert energy_rank(torch.full((9, 5), 1.7), 0.96) == 0
    assert energy_rank(torch.randn(1, 5), 0.96) == 0
    assert energy_rank(torch.zeros(9, 5), 0.96) == 0


def test_ranks_do_not_depend_on_the_mean() -> None:
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    assert energy_rank(x, 0.9) == energy_rank(x + 100.0, 0.9) > 1


def test_boundaries_come_from_the_cosine_of_the_latent() -> None:
    areas = [1 / 256, 1 / 64, 1 / 16, 9 / 64, 1 / 4, 9 / 16, 1.0]
    cosines = [0.48, 0.56, 0.71, 0.78, 0.86, 0.89, 1.0]
    assert find_boundaries(cosines, areas) == StageBoundaries(1 / 16, 1 / 4)
    assert find_boundaries([0.9] * 6 + [1.0], areas) == StageBoundaries(1 / 256, 1 / 256)
    # The last scale is always left to the fidelity stage.
    assert find_boundaries([0.1] * 6 + [1.0], areas) == StageBoundaries(9 / 16, 9 / 16)
    assert find_boundaries([1.0], [1.0]) == StageBoundaries(0.0, 0.0)


def test_running_moments_equal_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3, 2))
    values[:3, 1, 0] = math.nan
    values[:, 2, 1] = math.nan
    moments = Moments()
    for number, value in enumerate(values):
        moments.add(value)
        if number == 3:  # saved and taken up again on the way
            state = json.loads(json.dumps(moments.state()))
            moments = Moments()
            moments.restore(state)
    curve = moments.curve()
    assert curve["mean"][2][1] is None and curve["std"][2][1] is None
    for index in np.ndindex(3, 2):
        known = values[(slice(None), *index)]
        known = known[~np.isnan(known)]
        if known.size:
            assert curve["mean"][index[0]][index[1]] == pytest.approx(known.mean(), abs=1e-6)
            assert curve["std"][index[0]][index[1]] == pytest.approx(known.std(ddof=1), abs=1e-6)


def test_watching_changes_nothing(pipeline) -> None:
    request, found = Request(chunks=2), calibrate._Found()
    plain = pipeline(PROMPTS[0], seed=3)
    watched = pipeline(PROMPTS[0], seed=3, policy=calibrate._Probe(request, found))
    assert torch.equal(plain.images, watched.images)
    assert len(found.ranks) == 7 and {len(ranks) for ranks in found.ranks} == {2}


def test_curves_of_a_picture_end_at_the_picture(pipeline) -> None:
    curves = calibrate.measure(pipeline, PROMPTS[0], 0, Request(chunks=2))
    assert set(curves) == set(CURVES)
    assert {curves[name].shape for name in CURVES if not name.startswith("rank")} == {(7,)}
    assert curves["latent_cosine"][-1] == pytest.approx(1.0)
    assert curves["latent_distance"][-1] == 0.0 and curves["bit_agreement"][-1] == 1.0
    assert math.isnan(curves["image_psnr"][-1]) and not np.isnan(curves["image_psnr"][:-1]).any()
    assert curves["latent_change"][0] == pytest.approx(1.0)
    ranks, counts = curves["rank"], np.array([s.tokens for s in pipeline.schedule()])
    assert np.isnan(ranks[0]).all() and (ranks[1:] <= counts[1:, None]).all() and (ranks[1:] <= 32).all()
    assert np.allclose(curves["rank_of_tokens"][1:], ranks[1:] / counts[1:, None])
    assert np.allclose(curves["rank_of_width"][1:], ranks[1:] / 32)
    for name in ("disagreement", "entropy", "bit_agreement"):
        assert ((curves[name] >= 0) & (curves[name] <= 1)).all()
    assert curves["disagreement"].max() > 0


def test_the_first_chunk_sees_at_most_as_many_directions_as_a_token_has_bits(pipeline) -> None:
    ranks = calibrate.measure(pipeline, PROMPTS[0], 0, Request(alpha=1 - 1e-9, chunks=3))["rank"]
    assert (ranks[1:, 0] <= pipeline.transformer.config.bits).all() and ranks[-1, 1] > ranks[-1, 0]


def test_without_guidance_nothing_disagrees_and_nothing_is_claimed(pipeline) -> None:
    curves = calibrate.measure(pipeline, "red", 0, Request(settings=pipeline.settings(cfg=1.0)))
    assert np.isnan(curves["disagreement"]).all() and not np.isnan(curves["entropy"]).any()


def finished(pipeline, request: Request, prompts=PROMPTS) -> Calibration:
    work = Calibration(pipeline, prompts, request)
    assert [work.done for _ in work.run()] == list(range(1, len(prompts) + 1))
    return work


def test_the_schedule_of_a_calibration_can_be_read_and_used(pipeline, tmp_path) -> None:
    work = finished(pipeline, Request(chunks=2))
    schedule = work.schedule()
    schedule.save(tmp_path / "x.json")
    again = StageSchedule.load(tmp_path / "x.json")
    assert again.to_json() == schedule.to_json()
    again.check(identity(pipeline.transformer.family, pipeline.transformer.config.to_dict()))
    other = tiny_infinity(depth=2)
    with pytest.raises(ValueError, match="made for infinity with depth 3"):
        again.check(identity(other.family, other.config.to_dict()))
    shares = again.measured["curves"]["rank_of_tokens"]["mean"]
    assert [area for area, _ in again.keep] == [scale.tokens / 256 for scale in pipeline.schedule()][1:]
    assert [list(share) for _, share in again.keep] == [
        pytest.approx(row, abs=5e-5) for row in shares if row[0] is not None
    ]
    for name in ("balanced", "paper"):
        found = pipeline("red", policy=again.apply(PRESETS[name]))
        assert found.images.shape == (1, 128, 128, 3)


def test_half_a_measurement_taken_up_again_equals_a_whole_one(pipeline) -> None:
    request, prompts = Request(chunks=2, seed=5), PROMPTS[:2]
    first = Calibration(pipeline, prompts, request)
    next(first.run())
    second = Calibration(pipeline, prompts, request)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.done == 1
    assert len(list(second.run())) == 1
    assert second.schedule().to_json() == finished(pipeline, request, prompts).schedule().to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": Request(alpha=0.9)}, r"begun with alpha 0.96; this call has 0.9"),
        ({"request": Request(chunks=3)}, r"begun with chunks 8; this call has 3"),
        ({"request": Request(seed=1)}, r"begun with seed 0; this call has 1"),
        ({"prompts": ["other"]}, r"begun with prompts '"),
        ({"request": Request(width=200, height=100)}, r"begun with schedule"),
    ],
)
def test_a_state_of_another_measurement_is_refused(pipeline, change, message) -> None:
    state = Calibration(pipeline, PROMPTS, Request()).state()
    options = {"prompts": PROMPTS, "request": Request(), **change}
    with pytest.raises(ValueError, match=message):
        Calibration(pipeline, **options).restore(state)


@pytest.mark.parametrize("part", ["transformer", "tokenizer", "text encoder"])
def test_a_state_of_other_weights_is_refused(part: str, pipeline, tmp_path) -> None:
    state = Calibration(pipeline, PROMPTS, Request()).state()
    other = Pipeline.load(**write_models(tmp_path), device="cpu")
    parts = {"transformer": other.transformer, "tokenizer": other.tokenizer}
    randomize(parts.get(part) or other.text_encoder.model, 7)
    with pytest.raises(ValueError, match="begun with weights"):
        Calibration(other, PROMPTS, Request()).restore(state)


@pytest.mark.parametrize("broken", [{}, {"request": 3}, {"request": {}, "done": 1, "moments": {}}, []])
def test_a_broken_state_is_refused(pipeline, broken) -> None:
    with pytest.raises(ValueError, match="cannot be read .* delete it"):
        Calibration(pipeline, PROMPTS, Request()).restore(broken)


@pytest.mark.parametrize(
    "request_", [{"alpha": 0.0}, {"alpha": 1.0}, {"alpha": math.nan}, {"chunks": 0}, {"chunks": 257}]
)
def test_requests_that_cannot_be_measured_are_refused(request_) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(request_))} is .*; expected"):
        Request(**request_)


def test_calibrate_writes_a_schedule_a_plot_and_a_table(files, tmp_path) -> None:
    prompts, out, plot = tmp_path / "prompts.txt", tmp_path / "new" / "s.json", tmp_path / "curves.png"
    prompts.write_text("\n".join(["", *PROMPTS, "  ", "one more"]), encoding="utf-8")
    code, stdout, stderr = command(
        files, "calibrate", "--prompts", prompts, "--limit", 3, "--out", out, "--plot", plot, "--chunks", 2
    )
    assert code == 0, stderr
    schedule = StageSchedule.load(out)
    assert schedule.measured["prompts"] == 3 and schedule.measured["chunks"] == 2
    assert stdout[-2:] == [str(out), str(plot)] and "16x16" in "\n".join(stdout)
    with Image.open(plot) as image:
        assert min(image.size) > 500
    assert sorted(path.name for path in out.parent.iterdir()) == ["s.json"]


def test_calibrate_uses_captions_when_there_are_no_prompts(files, tmp_path) -> None:
    code, _, stderr = command(files, "calibrate", "--limit", 2, "--out", tmp_path / "s.json")
    assert code == 0, stderr
    assert StageSchedule.load(tmp_path / "s.json").measured["prompts"] == 2


def test_an_interrupted_calibration_goes_on_where_it_stopped(files, tmp_path, monkeypatch) -> None:
    prompts, add = tmp_path / "prompts.txt", Calibration.add
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    options = ("--prompts", prompts, "--chunks", 2)
    assert command(files, "calibrate", *options, "--out", tmp_path / "whole.json")[0] == 0
    calls = []

    def interrupted(work: Calibration, curves: dict) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(work.done)
        add(work, curves)

    monkeypatch.setattr(Calibration, "add", interrupted)
    out = tmp_path / "s.json"
    assert command(files, "calibrate", *options, "--out", out)[0] == 130
    assert not out.exists() and (tmp_path / "s.json.state").exists()
    calls.clear()
    assert command(files, "calibrate", *options, "--out", out, "--resume")[0] == 0
    assert calls == [2]
    assert out.read_text() == (tmp_path / "whole.json").read_text()
    assert not (tmp_path / "s.json.state").exists()


def test_warnings_are_said_once_and_not_on_the_bar(files, tmp_path, caplog) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([f"{'red ' * 5000}circle"] * 3), encoding="utf-8")
    code, out, err = command(files, "calibrate", "--prompts", prompts, "--out", tmp_path / "s.json")
    assert code == 0 and not caplog.messages
    said = [line for line in out if "this model reads" in line]
    assert len(said) == 1 and not any("this model reads" in line for line in err)


def test_state_is_saved_on_the_way(pipeline, tmp_path, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(calibrate_command, "SAVE_EVERY", 2)
    monkeypatch.setattr(calibrate_command, "write_state", lambda work, path: saved.append(work.done))
    calibrate_command.measure(Calibration(pipeline, PROMPTS, Request()), tmp_path / "x.state")
    assert saved == [2, 3]


def test_a_state_that_does_not_fit_is_one_line(files, tmp_path) -> None:
    (tmp_path / "s.json.state").write_text("{}")
    code, _, stderr = command(files, "calibrate", "--limit", 1, "--out", tmp_path / "s.json", "--resume")
    assert code == 2 and "s.json.state" in stderr[-1] and "starts over" in stderr[-1]
    assert command(files, "calibrate", "--limit", 1, "--out", tmp_path / "s.json")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alpha", 1.5), "alpha is 1.5"),
        (("--alpha", "nan"), "alpha is nan"),
        (("--chunks", 0), "chunks is 0"),
        (("--limit", 0), "--limit is 0"),
        (("--seed", -1), "--seed is -1"),
        (("--prompts", "absent.txt"), "absent.txt"),
        (("--out", "x.png"), "--out is x.png; expected a file that ends in .json"),
        (("--plot", "x.nothing"), "x.nothing"),
        (("--width", 0, "--height", 128), "width is 0"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(files, tmp_path, options, message) -> None:
    code, stdout, stderr = command(files, "calibrate", "--out", tmp_path / "s.json", *options)
    assert code == 2 and not stdout and len(stderr) == 1 and message in stderr[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\xfe\xff"])
def test_files_without_prompts_are_named(files, tmp_path, data) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(data)
    code, _, stderr = command(files, "calibrate", "--out", tmp_path / "s.json", "--prompts", path)
    assert code == 2 and "p.txt" in stderr[0]
