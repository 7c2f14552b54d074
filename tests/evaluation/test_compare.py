"""The comparison of presets: pairing, resuming, reports, folders for official scorers, experiments."""

import json
from pathlib import Path

import experiments
import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.commands.compare import chosen_policies
from stagevar_core.evaluation import metrics
from stagevar_core.evaluation import report as compare_report
from stagevar_core.evaluation import score as evaluate
from stagevar_core.evaluation import tables as compare_tables
from stagevar_core.evaluation.compare import Job, compare
from stagevar_core.pipeline import Pipeline
from tests.support.tiny_files import command

CAPTIONS = ("a red circle", "a blue square", "two red circles")
POLICIES = {"balanced": PRESETS["balanced"], "first five": FirstScales(5)}
ABOUT = {"command": "x", "dtype": "float32", "hardware": {"processor": "p", "threads": 1, "torch": "t"}}


def same(a, b) -> bool:
    """Whether two comparisons measured the same, the clock aside."""
    pairs = [
        (a.measures[name][key], b.measures[name][key]) for name in a.variants for key in a.measures[name]
    ]
    pairs += [(a.work[name]["flops"], b.work[name]["flops"]) for name in a.variants]
    return a.variants == b.variants and all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def test_pictures_and_values_are_those_of_single_calls(pipeline):
    kept = {}
    job = Job(CAPTIONS, seeds=2, seed=5, batch=4)
    found = compare(pipeline, POLICIES, job, keep=lambda name, i, picture: kept.update({(name, i): picture}))
    assert found.variants == ["off", "balanced", "first five"] and len(kept) == 3 * 6
    for index in (0, 3, 5):
        caption = CAPTIONS[index // 2]
        dense = pipeline(caption, seed=5 + index).images
        near = pipeline(caption, seed=5 + index, policy=PRESETS["balanced"]).images
        # Another batch size rounds otherwise; other seeds or prompts are tens of levels away.
        np.testing.assert_allclose(kept["off", index].astype(int), dense[0].numpy(), atol=2)
        np.testing.assert_allclose(kept["balanced", index].astype(int), near[0].numpy(), atol=2)
        psnr, ssim = (float(way(dense, near)) for way in (metrics.psnr, metrics.ssim))
        assert found.measures["balanced"]["psnr"][index] == pytest.approx(psnr, abs=0.01)
        assert found.measures["balanced"]["ssim"][index] == pytest.approx(ssim, abs=0.001)
    assert (found.measures["off"]["psnr"] == metrics.PSNR_LIMIT).all()
    assert (found.measures["balanced"]["psnr"] < 60).all(), "the preset changed nothing"


def test_work_is_counted_from_the_runs(pipeline):
    found = compare(pipeline, POLICIES, Job(CAPTIONS, batch=2))
    assert found.work["off"]["flops"].shape == (2, 7)
    trace = pipeline(list(CAPTIONS[:2]), policy=PRESETS["balanced"]).generation.trace
    assert found.work["balanced"]["flops"][0].sum() == trace.flops
    costs = compare_report.costs(found, "balanced")
    dense = pipeline(list(CAPTIONS), policy=None).generation.trace
    assert costs["flop_ratio"] == pytest.approx(trace.ratio, rel=0.01) and dense.ratio == 1.0
    assert costs["wall_ratio"] > 0 and costs["scales"][-1]["computed"] == trace.scales[-1].budget[0] < 256
    skipping = compare_report.costs(found, "first five")
    assert skipping["scales_skipped"] == 2 and skipping["tokens"] == pytest.approx(121 / 521)


def test_scores_are_those_of_the_score_command(pipeline):
    captions = tuple(caption for _, caption in evaluate.held_out(5, 3))
    found = compare(pipeline, {}, Job(captions, seed=3, batch=5))
    task = evaluate.Judged(evaluate.Generated(captions, seed=3), captions)
    report = evaluate.evaluated(pipeline, task, batch=2).reports["all scales"]
    own = compare_report.summary(found, "off")
    for measure in ("strict", "texture", "colour", "background"):
        if report["all"][measure]:
            assert own[measure]["all"]["mean"] == pytest.approx(report["all"][measure]["mean"])
            assert own[measure]["all"]["low"] == pytest.approx(report["all"][measure]["low"], abs=1e-4)


def test_prompts_outside_the_grammar_are_not_scored(pipeline):
    found = compare(pipeline, POLICIES, Job(("an astronaut",)))
    assert found.tasks is None and set(found.measures["off"]) == {"psnr", "ssim"}
    values = compare_report.report(found, POLICIES, ABOUT, "balanced")
    assert "strict" not in compare_tables.markdown(values, "balanced")


class Stop(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def test_an_interrupted_comparison_goes_on_where_it_ended(pipeline, tmp_path):
    job, made = Job(CAPTIONS, batch=1), []

    def keep(name: str, index: int, picture: np.ndarray) -> None:
        if len(made) == 4:  # in the middle of the second batch
            raise Stop
        made.append((name, index))

    with pytest.raises(Stop):
        compare(pipeline, POLICIES, job, store=tmp_path, keep=keep)
    assert len(list(tmp_path.glob("*.npz"))) == 1 and not list(tmp_path.glob("*.part"))
    done, again = [], []
    found = compare(
        pipeline,
        POLICIES,
        job,
        store=tmp_path,
        keep=lambda name, index, picture: again.append(index),
        advance=done.append,
    )
    assert again == [1] * 3 + [2] * 3 and done == [1, 1, 1]
    assert same(found, compare(pipeline, POLICIES, job))


def test_a_store_is_never_continued_with_something_else(pipeline, tmp_path):
    job = Job(CAPTIONS[:1])
    compare(pipeline, POLICIES, job, store=tmp_path)
    with pytest.raises(ValueError, match="results of other job"):
        compare(pipeline, POLICIES, Job(CAPTIONS[1:2]), store=tmp_path)
    changed = {**POLICIES, "balanced": chosen_policies("balanced", ["keep=0.5"])["balanced"]}
    with pytest.raises(ValueError, match="results of other variants"):
        compare(pipeline, changed, job, store=tmp_path)
    weight = pipeline.transformer.word_embed.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 0.25
    try:
        with pytest.raises(ValueError, match="results of other models"):
            compare(pipeline, POLICIES, job, store=tmp_path)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    next(tmp_path.glob("*.npz")).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match="damaged"):
        compare(pipeline, POLICIES, job, store=tmp_path)


def test_a_report_holds_every_value_of_every_picture(pipeline):
    found = compare(pipeline, POLICIES, Job(CAPTIONS, seeds=2))
    values = json.loads(json.dumps(compare_report.report(found, POLICIES, ABOUT, "balanced")))
    for name in found.variants:
        for measure, packed in values["variants"][name]["pictures"].items():
            read = compare_report.unpacked(packed)
            np.testing.assert_allclose(read, found.measures[name][measure], atol=0.0051)
    row = values["variants"]["first five"]
    assert row["policy"] == ["FirstScales", {"count": 5}]
    pair = row["psnr"]["mean"] - values["variants"]["balanced"]["psnr"]["mean"]
    assert row["against balanced"]["psnr_difference"]["mean"] == pytest.approx(pair, abs=1e-4)
    assert row["psnr"]["n"] == 3, "seeds of one caption are not independent"


def test_tables_have_a_row_for_each_variant(pipeline):
    found = compare(pipeline, POLICIES, Job(CAPTIONS))
    values = compare_report.report(found, POLICIES, ABOUT, "balanced")
    tables = compare_tables.markdown(values, "balanced").strip().split("\n\n")
    names = [[line[2:].split(" | ")[0] for line in table.splitlines()] for table in tables]
    rows = ["---", "off", "balanced", "first five"]
    assert names == [["preset", *rows], ["strict by task", *rows], ["balanced minus", "---", "first five"]]
    cells = tables[0].splitlines()[-1].split(" | ")
    assert cells[4] == "2" and " ± " in cells[5]
    minus = tables[-1].splitlines()[-1]
    assert (
        f"{-values['variants']['first five']['against balanced']['psnr_difference']['mean']:+.2f} [" in minus
    )


def compared(files: dict[str, Path], *options) -> tuple[int, str, str]:
    """Exit code and both streams of ``compare`` on the tiny model."""
    code, out, err = command(files, "compare", *options)
    return code, "\n".join(out), "\n".join(err)


def test_the_command_writes_tables_json_and_a_grid(files, tmp_path):
    outputs = {name: tmp_path / f"made.{name}" for name in ("json", "markdown", "png")}
    options = ("--presets", "paper,balanced", "--overrides", "balanced:keep=0.5", "spans=1", "--prompts", 3)
    options += ("--batch", 2, "--out", tmp_path / "out", "--json", outputs["json"], "--grid", outputs["png"])
    code, out, err = compared(files, *options, "--markdown", outputs["markdown"], "--against", "balanced")
    assert code == 0, err
    assert "no LPIPS" in err and "| balanced |" in out
    values = json.loads(outputs["json"].read_text(encoding="utf-8"))
    assert list(values["variants"]) == ["off", "paper", "balanced"]
    assert values["variants"]["balanced"]["policy"][1]["settings"][1]["tokens"][1]["keep"] == 0.5
    assert values["variants"]["paper"]["policy"][1]["settings"][1]["tokens"][1]["spans"] == 1
    assert (
        len(values["captions"]) == 3 and values["dtype"] == "float32" and values["hardware"]["threads"] >= 1
    )
    assert "3 prompts, batches of 2, float32" in outputs["markdown"].read_text(encoding="utf-8")
    with Image.open(outputs["png"]) as image:
        assert image.width > 3 * 128 and image.height > 3 * 128
    code, again, err = compared(files, *options)  # everything is there already
    assert code == 0 and again.splitlines()[:5] == out.splitlines()[:5], err


def test_warnings_are_said_once_in_the_report_and_not_on_the_bar(files, tmp_path, caplog):
    prompts, report = tmp_path / "prompts.txt", tmp_path / "made.json"
    prompts.write_text("\n".join([f"{'red ' * 5000}circle"] * 4), encoding="utf-8")
    options = ("--prompts", prompts, "--batch", 1, "--out", tmp_path / "out", "--json", report)
    code, out, err = compared(files, *options, "--presets", "fastvar")
    assert code == 0 and not caplog.messages
    assert "this model reads" not in err and "none of them is skipped" not in err
    assert out.count("this model reads") == 1 == out.count("fastvar: the fidelity stage")
    values = json.loads(report.read_text(encoding="utf-8"))
    assert len(values["warnings"]) == 1 and "this model reads" in values["warnings"][0]
    assert len(values["variants"]["fastvar"]["notes"]) == 1


def test_genevals_folders(files, tmp_path):
    entries = [{"tag": "colors", "include": [], "prompt": text} for text in CAPTIONS]
    listing = tmp_path / "evaluation_metadata.jsonl"
    listing.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    options = ("--presets", "balanced", "--geneval", listing, "--prompts", 2, "--out", tmp_path / "out")
    code, out, err = compared(files, *options, "--seeds", 2)
    assert code == 0, err
    for name in ("off", "balanced"):
        folder = tmp_path / "out" / "pictures" / name
        assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001"]
        assert json.loads((folder / "00001" / "metadata.jsonl").read_text(encoding="utf-8")) == entries[1]
        samples = sorted(path.name for path in (folder / "00001" / "samples").iterdir())
        assert samples == ["0000.png", "0001.png"]
        assert f"evaluate_images.py {folder}" in out


def test_dpg_pictures_hold_four_seeds(files, pipeline, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, text in zip(("7", "coco_12"), CAPTIONS, strict=False):
        (prompts / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    options = ("--presets", "off", "--dpg", prompts, "--out", tmp_path / "out")
    code, out, err = compared(files, *options)
    assert code == 0, err
    folder = tmp_path / "out" / "dpg" / "off"
    assert sorted(path.name for path in folder.iterdir()) == ["7.png", "coco_12.png"]
    assert f"--image-root-path {folder} --resolution 128 --pic-num 4" in out
    with Image.open(folder / "coco_12.png") as image:
        whole = np.array(image).astype(int)
    assert whole.shape == (256, 256, 3)
    fourth = pipeline(CAPTIONS[1], seed=7).images[0].numpy()
    np.testing.assert_allclose(whole[128:, 128:], fourth, atol=2)
    code, _, err = compared(files, *options, "--seeds", 3)
    assert code == 2 and "4 pictures per prompt" in err


@pytest.mark.parametrize(
    "options, said",
    [
        (("--presets", "fastest"), "preset is 'fastest'"),
        (("--presets", "balanced", "--overrides", "keep=2"), "keep is 2; expected"),
        (("--presets", "balanced", "--overrides", "keep"), "expected KEY=VALUE"),
        (("--presets", "balanced", "--overrides", "fast:keep=1"), "expected a preset of"),
        (
            ("--presets", "fastvar", "--overrides", "keep=0.5"),
            "--overrides: preset 'fastvar' is a fixed method and takes no keep",
        ),
        (("--prompts", "0"), "--prompts is 0"),
        (("--prompts", "missing.txt"), "missing.txt"),
        (("--seeds", "0"), "seeds is 0"),
        (("--against", "fast"), "--against is 'fast'"),
        (("--grid", "picture.doc"), "expected an image file"),
        (("--lpips", "missing.pth"), "no such file"),
        (("--dpg", "."), "no .txt file"),
        (("--batch", "0"), "--batch is 0"),
    ],
)
def test_bad_input_is_one_line(files, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = compared(files, *options, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 2 and len(lines) == 1 and said in lines[0], err
    assert not (tmp_path / "out").exists()


def test_broken_geneval_lists_are_refused(files, tmp_path):
    listing = tmp_path / "list.jsonl"
    for text, said in (
        ("", "no prompt there"),
        ("{", "line 1: no JSON"),
        ('{"tag": 1}', "line 1: no prompt"),
    ):
        listing.write_text(text, encoding="utf-8")
        code, _, err = compared(files, "--geneval", listing, "--out", tmp_path / "out")
        assert code == 2 and said in err


def test_experiment_tables_leave_the_text_around_them():
    text = experiments.replaced("# Experiments\n\nWhy.\n", "a", "| old |")
    text = experiments.replaced(text, "d", "| other |")
    text = text.replace("<!-- end of experiment a -->", "<!-- end of experiment a -->\n\nA finding.")
    again = experiments.replaced(text, "a", "| new |")
    assert again == text.replace("| old |", "| new |") and "A finding." in again and "Why." in again
    with pytest.raises(ValueError, match="no <!-- end of experiment a -->"):
        experiments.replaced("<!-- experiment a -->", "a", "| new |")


def test_experiments_compare_at_equal_flops(pipeline):
    lab = experiments.Lab(pipeline)  # its schedule is the embedded model's
    wanted = lab.flops(lab.base)
    for name, policy in experiments.budget(lab).items():
        assert lab.flops(policy.settings) == pytest.approx(wanted, rel=0.02), name
    mixed = experiments.tokens(lab)["stage, projection as in the paper"].settings
    assert mixed.tokens.mode == "projection" and lab.flops(mixed) == pytest.approx(wanted, rel=0.02)
    with pytest.raises(ValueError, match="no share of tokens costs"):
        lab.equal(lambda share: experiments.changed(lab.base, skip=1, keep=0.1 * share))


def test_late_scales_cost_no_more_than_asked(pipeline):
    lab = experiments.Lab(pipeline)
    dense = lab.flops(None)
    assert dense == pipeline(["a red circle"]).generation.trace.flops
    staged = [policy for policy in experiments.late(lab).values() if hasattr(policy, "settings")]
    costs = [dense / lab.flops(policy.settings) for policy in staged if hasattr(policy.settings, "tokens")]
    assert len(costs) >= 5 and min(costs) >= experiments.RATIO * 0.999


@pytest.mark.parametrize("model", experiments.MODELS)
def test_every_experiment_has_variants_of_its_own(model):
    lab = experiments.Lab(Pipeline.embedded(model=model, device="cpu"))
    lab.flops = lambda settings: 1.0  # budgets are checked above
    asked = {key: each for key, each in experiments.EXPERIMENTS.items() if model in each.models}
    assert "h" in asked and len({experiments.stem("h", each) for each in experiments.MODELS}) == 2
    for key, experiment in asked.items():
        variants = experiment.variants(lab)
        assert len(variants) >= 3, key
        assert len({repr(policy) for policy in variants.values()}) == len(variants), key
        assert not {"off", experiment.base} & set(variants), key
