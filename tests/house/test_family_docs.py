"""The page about the families says what the code counts."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.stages import StageBoundaries
from stagevar_core.models.star_config import STAR_256, STAR_512, STAR_1024, STARConfig
from stagevar_core.models.star_sampler import refine_flops
from stagevar_core.models.switti_config import SWITTI_512, SWITTI_512_AR, SWITTI_1024, SWITTI_1024_AR
from stagevar_core.models.var import VAR_D16, VAR_D30, VAR_D36
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.forecast import forecast
from stagevar_core.schedule import SIDES_1024
from tests.support.tiny_var import squares

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
MODELS = {
    "VAR-d16, 256 px": VAR_D16,
    "VAR-d30, 256 px": VAR_D30,
    "VAR-d36, 512 px": VAR_D36,
    "STAR, 256 px": STAR_256,
    "STAR, 512 px": STAR_512,
    "STAR, 1024 px": STAR_1024,
    "Switti, 512 px": SWITTI_512,
    "Switti-AR, 512 px": SWITTI_512_AR,
    "Switti, 1024 px": SWITTI_1024,
    "Switti-AR, 1024 px": SWITTI_1024_AR,
    "STAR, 1024 px, with a sampler network": STARConfig.released(30, SIDES_1024, sampler=True),
}
COLUMNS = ("off", "quality", "balanced", "fast", "turbo", "paper", "paper-released")


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_the_counted_work(name: str) -> None:
    config = MODELS[name]
    schedule, units = squares(*config.sides), config.unit_costs
    if getattr(config, "sampler_depth", 0):
        units = replace(units, refine=tuple(refine_flops(config, scale, "mixed") for scale in schedule))
    guided = min(getattr(config, "guided", len(schedule)), len(schedule))
    info = RunInfo(schedule, config.depth, 1, True, False, (0,), guided_until=guided, corrects=False)
    work = [sum(forecast(PRESETS[preset], info, units, 20).flops) for preset in COLUMNS]
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    found = [float(number) for number in re.findall(r"\| (\d+\.\d+)(?: TFLOP)? (?=\|)", row)]
    assert found == pytest.approx([work[0] / 1e12, *(work[0] / each for each in work[1:])], abs=0.0051)


def test_the_help_of_the_node_has_the_same_figures() -> None:
    text = (ROOT / "web" / "docs" / "StageVARAccelerate.md").read_text(encoding="utf-8")
    rows = {name: re.findall(r"\d+\.\d+", line) for name, line in help_rows(text)}
    pipeline = Pipeline.embedded(model="artwork", device="cpu")
    config, schedule = pipeline.transformer.config, pipeline.schedule()
    info = RunInfo(schedule, config.depth, 1, True, False, (0,), corrects=pipeline.transformer.corrects)
    dense, *work = (sum(forecast(PRESETS[name], info, config.unit_costs, 1).flops) for name in COLUMNS[:5])
    pages = {column: page_row(name) for column, name in enumerate(SHOWN, 1)}
    for number, (name, found) in enumerate(zip(COLUMNS[1:5], work, strict=True), 1):
        assert rows[name] == [f"{dense / found:.2f}", *(pages[column][number] for column in pages)]


SHOWN = ("VAR-d30, 256 px", "STAR, 1024 px", "HART-0.7B, 1024 px")


def help_rows(text: str) -> list[tuple[str, str]]:
    """Names and lines of the table with a column for every model."""
    table = text.partition("| preset | artwork |")[2].partition("\n\n")[0]
    return [(line.split("|")[1].strip(), line) for line in table.splitlines()[2:]]


def page_row(name: str) -> list[str]:
    """The figures of a model in the table of the page."""
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return re.findall(r"\d+\.\d+", row.partition("|")[2].partition("|")[2])


@pytest.mark.parametrize("config", [VAR_D30, VAR_D36, STAR_1024], ids=["256", "512", "1024"])
def test_the_page_names_the_scales_of_the_fidelity_stage(config) -> None:
    schedule = squares(*config.sides)
    stages = zip(schedule, StageBoundaries().stages(schedule), strict=True)
    sides = [scale.height for scale, stage in stages if stage == "fidelity"]
    assert "{}, {} and {}".format(*sides) in PAGE


def test_the_page_names_workflows_and_files_that_there_are() -> None:
    named = set(re.findall(r"`(?:workflows/)?(\w+)\.json`", PAGE)) - {"vocab", "config"}
    assert len(named) >= 5 and all((ROOT / "workflows" / f"{name}.json").is_file() for name in named)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`(var_d\d+\.pth|vae_\w+\.pth)`", PAGE))
    assert len(files) == 6 and all(name in readme for name in files) and "docs/families.md" in readme
