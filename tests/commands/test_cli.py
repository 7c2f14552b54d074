"""The pipeline without ComfyUI and its command line, on tiny random files."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.schedule_file import StageSchedule
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.commands.main import main
from stagevar_core.evaluation import score as evaluate
from stagevar_core.pipeline import EMBEDDED, Pipeline
from stagevar_core.sampling.numbers import to_uint8
from stagevar_core.sampling.result import Monitor
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.scenes import render, sample_scene, score
from tests.support.tiny_files import CODES, DEFAULTS, command, write_models

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle left of a blue square"


def test_a_call_gives_images_settings_and_times(pipeline):
    found = pipeline(PROMPT, seed=3, batch=2, steps=True)
    assert found.images.shape == (2, 128, 128, 3) and found.images.dtype == torch.uint8
    assert found.size == (128, 128) and found.seeds == (3, 4)
    assert len(found.seconds["scales"]) == len(found.schedule) == len(found.steps) == 7
    assert found.seconds["total"] >= found.seconds["text"] + found.seconds["decode"]
    assert torch.equal(found.steps[6], found.images)
    assert found.settings == SamplingSettings(cfg_scale=2.0, temperature=0.7, top_k=0, top_p=0.9)


def test_an_image_keeps_its_seed_in_any_batch(pipeline):
    together = pipeline(["red", "a blue circle", "red"], seed=5)
    alone = pipeline("a blue circle", seed=6)
    # The coarse codes: later on rounding may tip a bit.
    assert torch.equal(together.generation.codes[2][1], alone.generation.codes[2][0])
    assert not torch.equal(together.images[0], together.images[2])


def test_the_negative_prompt_and_the_empty_prompt_run(pipeline):
    assert pipeline("", "blue").images.shape == pipeline("").images.shape


def test_long_prompts_are_cut_to_the_transformers_rows(pipeline, caplog):
    conditioning = pipeline.encode(["red " * 5000], negative="")
    assert [len(text) for text in conditioning.features] == [16]
    assert [len(text) for text in conditioning.negative] == [1]
    assert "5001 tokens" in caplog.text


def test_sizes_are_snapped(pipeline):
    assert pipeline(PROMPT, width=200, height=210).size == (128, 128)
    assert pipeline.schedule(width=90).final.grid == (16, 16)
    wide = pipeline(PROMPT, width=200, height=100)
    assert wide.size == (176, 88) and wide.images.shape == (1, 88, 176, 3)


def test_a_monitor_sees_every_scale(pipeline):
    class Seen(Monitor):
        scales, blocks = 0, 0

        def scale(self, scale, f_hat):
            self.scales += 1

        def block(self, scale, layer):
            self.blocks += 1

    seen = Seen()
    pipeline(PROMPT, monitor=seen)
    assert (seen.scales, seen.blocks) == (7, 7 * 3)


def test_pixels_are_truncated_not_rounded():
    values = torch.tensor([-1.0, -0.001, 0.0, 0.999, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 127, 127, 254, 255]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"width": 0}, "width is 0"),
        ({"width": 100_000, "height": 128}, "width is 100000"),
        ({"settings": SamplingSettings(cfg_scale=float("nan"))}, "cfg is nan"),
        ({"settings": SamplingSettings(temperature=0.0)}, "temperature is 0.0"),
    ],
)
def test_bad_requests_name_the_field(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPT, **options)


def test_files_that_do_not_belong_together_are_refused(files, tmp_path):
    other = write_models(tmp_path, codes=BSQTokenizerConfig(8, CODES.width, CODES.multipliers, CODES.blocks))
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors does not belong to .*transformer"):
        Pipeline.load(files["transformer"], other["tokenizer"], files["text_encoder"], device="cpu")
    with pytest.raises(ValueError, match="expected a tokenizer|expected an image tokenizer"):
        Pipeline.load(files["transformer"], files["text_encoder"], files["text_encoder"], device="cpu")


def test_a_text_encoder_of_another_width_is_refused(pipeline):
    class Narrow:
        width = 7

    with pytest.raises(ValueError, match="gives 7 channels.*trained on 24"):
        Pipeline(pipeline.transformer, pipeline.tokenizer, Narrow(), pipeline.trained)


def test_generate_writes_an_image_and_one_json_line(files, tmp_path):
    out, steps = tmp_path / "new" / "x.png", tmp_path / "steps"
    code, stdout, stderr = command(
        files, "generate", "--prompt", PROMPT, "--seed", 7, "--out", out, "--steps-out", steps, "--json"
    )
    assert code == 0 and not stderr
    report = json.loads(stdout[-1])
    assert report["prompt"] == PROMPT and report["seed"] == 7 and report["files"] == [str(out)]
    assert (report["width"], report["height"]) == (128, 128) and report["schedule"][-1] == [16, 16]
    assert set(report["seconds"]) == {"text", "scales", "decode", "total"}
    assert len(report["seconds"]["scales"]) == 7
    assert sorted(path.name for path in steps.glob("*.png")) == [Path(step).name for step in report["steps"]]
    with Image.open(out) as image, Image.open(report["steps"][-1]) as last:
        assert image.size == (128, 128) and image.info["prompt"] == PROMPT
        assert np.array_equal(np.asarray(image), np.asarray(last))


def test_generate_numbers_the_images_of_a_batch(files, tmp_path):
    options = ("--cfg", "3,2,2,1,1,1,1", "--temperature", 0.5, "--top-k", 2, "--top-p", 0.97)
    code, stdout, _ = command(
        files, "generate", "--prompt", "", "--batch", 2, "--out", tmp_path / "x.png", "--json", *options
    )
    assert code == 0
    report = json.loads(stdout[-1])
    assert report["seeds"] == [0, 1] and report["settings"]["cfg_scale"] == [3, 2, 2, 1, 1, 1, 1]
    assert [Path(file).name for file in report["files"]] == ["x_00.png", "x_01.png"]


def test_a_prompt_of_a_stage_changes_what_follows(files, tmp_path):
    pictures = []
    for options in (
        (),
        ("--stage-prompt", f"structure={PROMPT}"),
        ("--stage-prompt", "fidelity=other words"),
    ):
        out = tmp_path / "x.png"
        code, _, stderr = command(files, "generate", "--prompt", PROMPT, "--out", out, *options)
        assert code == 0, stderr
        pictures.append(np.asarray(Image.open(out)))
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cfg", "nan"), "cfg is nan"),
        (("--cfg", "much"), "'much'"),
        (("--cfg", "3,2"), "cfg lists 2 values; this schedule has 7 scales"),
        (("--stage-prompt", "semantic=a"), "--stage-prompt is 'semantic=a'; expected each of structure and"),
        (("--stage-prompt", "fidelity"), "--stage-prompt is 'fidelity'"),
        (("--temperature", "inf"), "temperature is inf"),
        (("--top-p", "nan"), "top_p is nan"),
        (("--top-k", "-1"), "top_k is -1"),
        (("--batch", "0"), "--batch is 0"),
        (("--width", "0"), "--width is 0"),
        (("--height", "100000"), "--height is 100000"),
        (("--seed", "-5"), "--seed is -5"),
        (("--dtype", "int3"), "int3"),
        (("--out", "x.nothing"), "x.nothing"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(files, tmp_path, options, message):
    code, stdout, stderr = command(
        files, "generate", "--prompt", PROMPT, "--out", tmp_path / "x.png", *options
    )
    assert code == 2 and not stdout and len(stderr) == 1
    assert message in stderr[0] and stderr[0].startswith("error: ")


def test_missing_and_broken_files_are_named(files, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(files["tokenizer"].read_bytes()[:1000])
    for path in (tmp_path / "absent.safetensors", broken):
        code, _, stderr = command(
            {**files, "tokenizer": path}, "generate", "--prompt", PROMPT, "--out", tmp_path / "x.png"
        )
        assert code == 2 and len(stderr) == 1 and path.name in stderr[0]


def test_generate_needs_somewhere_to_write_and_a_device_that_exists(files, tmp_path):
    code, _, stderr = command(files, "generate", "--prompt", PROMPT)
    assert code == 2 and "--out" in stderr[0]
    arguments = ["generate", "--prompt", PROMPT, "--out", str(tmp_path / "x.png"), "--device", "abacus"]
    stderr = io.StringIO()
    with redirect_stderr(stderr):
        assert main(arguments) == 2
    assert "abacus" in stderr.getvalue() and len(stderr.getvalue().splitlines()) == 1


def test_a_process_of_its_own_shows_no_traceback(tmp_path):
    image, absent = str(tmp_path / "x.png"), "absent.safetensors"
    options = ["generate", "--prompt", "x", "--out", image, "--transformer", absent]
    result = subprocess.run(
        [sys.executable, "-m", "stagevar_core", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and absent in result.stderr


def test_a_preset_is_reported_in_a_line_in_json_and_as_a_plot(files, tmp_path):
    out, plot = tmp_path / "x.png", tmp_path / "new" / "report.png"
    options = ("--preset", "turbo", "--report-out", plot, "--json", "--batch", 2)
    code, stdout, stderr = command(files, "generate", "--prompt", PROMPT, "--out", out, *options)
    assert code == 0 and not stderr
    assert stdout[-3].startswith("turbo: ") and "1 of 7 scales skipped" in stdout[-3]
    assert stdout[-2] == str(plot)
    trace = json.loads(stdout[-1])["report"]
    assert trace["policy"] == "turbo" and trace["images"] == 2 and len(trace["scales"]) == 7
    assert trace["totals"]["flop_ratio"] > 3 and trace["totals"]["scales_skipped"] == 1
    with Image.open(plot) as image:
        assert min(image.size) > 500


def test_the_preset_off_is_the_default(files, tmp_path):
    images = []
    for index, options in enumerate(((), ("--preset", "off"), ("--preset", "balanced"))):
        path = tmp_path / f"{index}.png"
        code, stdout, _ = command(files, "generate", "--prompt", PROMPT, "--out", path, *options)
        assert code == 0
        images.append(np.asarray(Image.open(path)))
        assert stdout[-1].startswith("balanced: " if index == 2 else "off: as many FLOPs as the dense run")
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_a_schedule_file_changes_a_preset(files, tmp_path):
    path = tmp_path / "mine.json"
    StageSchedule(boundaries=StageBoundaries(0.1, 0.6), keep=0.5).save(path)
    options = ("--preset", "balanced", "--schedule", path, "--json")
    code, stdout, stderr = command(
        files, "generate", "--prompt", PROMPT, "--out", tmp_path / "x.png", *options
    )
    assert code == 0 and not stderr
    trace = json.loads(stdout[-1])["report"]
    assert trace["policy"] == "balanced (mine.json)"
    assert [scale["stage"] for scale in trace["scales"]][-3:] == ["structure", "structure", "fidelity"]
    assert trace["scales"][-1]["budget"] == [128]


def test_schedules_that_do_not_fit_are_refused(files, tmp_path):
    broken, other, fine = (tmp_path / name for name in ("broken.json", "other.json", "fine.json"))
    broken.write_text(StageSchedule(keep=0.5).to_json().replace("0.5", "5"))
    StageSchedule(model={"family": "infinity", "depth": 32}).save(other)
    StageSchedule(keep=0.5).save(fine)
    out = ("generate", "--prompt", PROMPT, "--out", tmp_path / "x.png", "--preset")
    for options, message in (
        (("balanced", "--schedule", broken), "broken.json: keep is 5; expected"),
        (("balanced", "--schedule", other), "other.json was made for infinity with depth 32; the model is"),
        (("balanced", "--schedule", tmp_path / "absent.json"), "absent.json"),
        (
            ("off", "--schedule", fine),
            "preset 'off' is a fixed method and takes no schedule; expected one of",
        ),
        (("quick",), "preset is 'quick'; expected one of ['off', "),
        (("fast", "--report-out", tmp_path / "x.nothing"), "x.nothing"),
    ):
        code, stdout, stderr = command(files, *out, *options)
        assert code == 2 and not stdout and len(stderr) == 1 and message in stderr[0]
    assert not (tmp_path / "x.png").exists()


def test_help_names_all_commands_and_presets():
    text = io.StringIO()
    for options in (["--help"], ["generate", "--help"]):
        with redirect_stdout(text), pytest.raises(SystemExit) as end:
            main(options)
        assert end.value.code == 0
    words = text.getvalue().replace(",", " ").split()
    assert {"generate", "score", "calibrate", "compare", *PRESETS} <= set(words)


def test_score_of_rendered_scenes_is_perfect(files, tmp_path):
    report, grid = tmp_path / "report.json", tmp_path / "grid.png"
    code, stdout, _ = command(files, "score", "--rendered", "--prompts", 12, "--json", report, "--grid", grid)
    assert code == 0 and "strict overall" in "\n".join(stdout)
    assert json.loads(report.read_text())["variants"]["rendered"]["all"]["strict"]["mean"] == 1.0
    assert Image.open(grid).size == (10 * 134, 2 * 134)


def test_score_reports_all_scales_and_without_the_last_two(files, tmp_path):
    report = tmp_path / "report.json"
    code, stdout, _ = command(
        files, "score", "--prompts", 3, "--batch", 2, "--seed", 4, "--json", report, "--cfg", 1
    )
    assert code == 0
    values = json.loads(report.read_text())
    assert list(values["variants"]) == ["all scales", "without the last 2"]
    assert values["variants"]["all scales"]["all"]["n"] == 3
    assert command(files, "score", "--prompts", 2, "--scales", 3)[0] == 0
    assert "expected 1 to 7" in command(files, "score", "--prompts", 2, "--scales", 8)[2][-1]


def test_score_of_reconstructions_runs_both_variants(files):
    code, stdout, _ = command(files, "score", "--prompts", 2, "--reconstruct")
    assert code == 0 and {"all scales:", "first 5 scales:"} <= set(stdout)


def test_a_prefix_of_a_run_is_the_run_without_the_last_scales(pipeline):
    captions = [PROMPT]
    tasks = (evaluate.Generated(captions, seed=2), evaluate.Generated(captions, seed=2, scales=5))
    both, dropped = (task.begin(lambda: pipeline)(range(1)) for task in tasks)
    assert np.array_equal(both["without the last 2"], dropped["first 5 scales"])
    assert not np.array_equal(both["all scales"], dropped["first 5 scales"])


def test_held_out_captions_are_different_and_reproducible():
    first, again = (evaluate.held_out(50, seed=3) for _ in range(2))
    assert [caption for _, caption in first] == [caption for _, caption in again]
    assert len({caption for _, caption in first}) == 50


def test_pictures_of_another_size_are_not_scored():
    rng = np.random.default_rng(0)
    scene, caption = sample_scene(rng)
    image = render(scene)[None, :64, :64]
    with pytest.raises(ValueError, match="64 x 64"):
        evaluate.read_back([caption], image)


def test_the_embedded_model_draws_what_the_prompt_says(tmp_path):
    code, stdout, _ = command(
        EMBEDDED, "generate", "--prompt", "a large red circle", "--out", tmp_path / "x.png", "--json"
    )
    assert code == 0 and json.loads(stdout[-1])["width"] == 128
    assert score("a large red circle", np.asarray(Image.open(tmp_path / "x.png"))).strict


def test_defaults_of_the_file_can_be_overridden(pipeline):
    assert pipeline.defaults == DEFAULTS
    assert pipeline.settings(cfg=1.0).cfg_scale == 1.0 and pipeline.settings(cfg=1.0).top_p == 0.9


@pytest.mark.parametrize("given", ["folder", "nowhere", "-1"])
@pytest.mark.parametrize("command_", ["compare", "calibrate"])
def test_prompts_that_cannot_be_read_are_said_in_words(
    command_: str, given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    path = given if given == "-1" else str(tmp_path / given)
    assert main([command_, f"--prompts={path}", "--out", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {path}: ") and "check the name" in said and "Errno" not in said
