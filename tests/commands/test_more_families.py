"""``compare`` and ``calibrate`` on HART, whose last scale has residuals beside its tokens."""

import json
from pathlib import Path

import pytest
from PIL import Image

from stagevar_core.commands.main import main
from tests.support.hart_files import CODES_FILE, HART_FILE, QWEN_FILE, write_hart


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name tiny files with the published names of their tensors."""
    folder = tmp_path_factory.mktemp("hart")
    write_hart(folder)
    named = {
        "--transformer": folder / "diffusion_models" / HART_FILE,
        "--tokenizer": folder / "vae" / CODES_FILE,
        "--text-encoder": folder / "text_encoders" / QWEN_FILE,
    }
    return [str(part) for option in named.items() for part in option]


def test_compare_measures_it_with_its_own_preset(files: list[str], tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = ["compare", "--prompts", "2", "--presets", "balanced,faster-hart", "--json", str(found)]
    assert main([*command, "--out", str(tmp_path / "out"), *files]) == 0
    assert list(json.loads(found.read_text("utf-8"))["variants"]) == ["off", "balanced", "faster-hart"]


def test_calibrate_measures_it(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "schedule.json"
    assert main(["calibrate", "--limit", "1", "--chunks", "2", "--out", str(out), *files]) == 0
    assert len(json.loads(out.read_text("utf-8"))["measured"]["schedule"]) == 8


REFUSED = {
    "words": (["--change", "x.png", "--from", "a cat"], "HART"),
    "stages": (["--stage-prompt", "fidelity=a dog"], "reads its text once"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_do_is_said(files: list[str], what: str, tmp_path: Path, capsys) -> None:
    (options, said), out = REFUSED[what], tmp_path / "y.png"
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    options = [str(tmp_path / each) if each == "x.png" else each for each in options]
    assert main(["generate", "--prompt", "a red cat", "--out", str(out), *options, *files]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and not out.exists()
