"""Sheets to pictures: rows and their errors, places and seeds, runs that go on, the command as a whole."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagevar_core.commands.main import main
from stagevar_core.pipeline import Pipeline
from stagevar_core.rendering.manifest import NAME, Manifest, described
from stagevar_core.rendering.plan import Shared, batches, for_layout, pictures
from stagevar_core.rendering.sheet import COLUMNS, Row, read_sheet

PROMPTS = ["a red circle", "two blue squares", "a green star"]


def sheet(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rendered(capsys, *options: object) -> dict:
    """The last line of the command."""
    assert main(["render", *map(str, options), "--threads", "1"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------------- sheets
def test_text_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    rows = [
        Row("a red circle, small", seed=3, width=128, preset="fast"),
        Row("two blue squares", negative="red"),
    ]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", " seed", "width", "preset", "negative"])
        writer.writerow([rows[0].prompt, 3, 128, "fast", ""])
        writer.writerow([rows[1].prompt, "", "", "", "red"])
    lines = [
        {"prompt": rows[0].prompt, "seed": 3, "width": 128, "preset": "fast", "negative": None},
        {"prompt": rows[1].prompt, "negative": "red"},
    ]
    text = sheet(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert read_sheet(tmp_path / "a.csv") == rows == read_sheet(text)
    assert read_sheet(sheet(tmp_path, "a.txt", f"{rows[0].prompt}\n\n  two blue squares \n")) == [
        Row(rows[0].prompt),
        Row("two blue squares"),
    ]


def test_benchmarks_are_read_as_they_come(tmp_path: Path) -> None:
    line = {"tag": "counting", "include": [{"class": "bear", "count": 2}], "prompt": "two bears"}
    (row,) = read_sheet(sheet(tmp_path, "evaluation_metadata.jsonl", json.dumps(line)), "geneval")
    assert row.prompt == "two bears" and row.metadata == line
    folder = tmp_path / "dpg"
    folder.mkdir()
    for name in ("partiprompts10", "COCOval2014000"):
        sheet(folder, f"{name}.txt", f"{name}, in words\n")
    assert [row.name for row in read_sheet(folder, "dpg")] == ["COCOval2014000", "partiprompts10"]
    captions = [
        {"image_id": 42, "caption": "A cat. "},
        {"image_id": 7, "caption": "x"},
        {"image_id": 42, "caption": "y"},
    ]
    coco = sheet(tmp_path, "captions_val2014.json", json.dumps({"annotations": captions}))
    assert read_sheet(coco, "coco") == [Row("x", name="000000000007"), Row("A cat.", name="000000000042")]


BAD = {
    "empty.txt": ("", "no prompt there"),
    "a.xlsx": ("x", "expected a sheet"),
    "columns.csv": ("text,seed\nx,1", "expected a header with prompt"),
    "commas.csv": ("prompt,seed\na, b, c, 1", "line 2: more values"),
    "unknown.csv": ("prompt,sede\nx,1", "'sede' is not known"),
    "seed.csv": ("prompt,seed\nx,one", "line 2: seed is 'one'"),
    "half.jsonl": ('{"prompt": "x", "width": 1.5}', "width is 1.5"),
    "true.jsonl": ('{"prompt": "x", "images": true}', "images is True"),
    "json.jsonl": ('{"prompt": ', "line 1: no JSON"),
    "list.jsonl": ("[1]", "line 1: a list"),
    "none.jsonl": ('{"seed": 1}', "no prompt"),
    "number.jsonl": ('{"prompt": "x", "negative": 1}', "negative is 1"),
    "preset.jsonl": ('{"prompt": "x", "preset": "warp"}', "preset is 'warp'"),
    "name.jsonl": ('{"prompt": "x", "name": "../x"}', "name is '../x'"),
    "twice.jsonl": ('{"prompt": "x", "name": "a"}\n{"prompt": "y", "name": "a"}', "'a' is there twice"),
    "coco.json": ('{"images": []}', "not COCO's captions"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_line_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        read_sheet(sheet(tmp_path, name, text))
    assert message in str(caught.value) and name in str(caught.value)


# --------------------------------------------------------------------------------------------------- plans
def test_a_picture_has_a_seed_of_its_row_and_place() -> None:
    rows = [Row("a"), Row("b", seed=100), Row("c", images=1), Row("d", width=64, negative="n", preset="fast")]
    found = pictures(rows, Shared(seed=5, images=2, width=32, preset="paper"), "plain")
    assert [picture.seed for picture in found] == [5, 6, 100, 101, 9, 10, 11]
    assert [picture.file for picture in found[:5]] == [
        "00000_00.png",
        "00000_01.png",
        "00001_00.png",
        "00001_01.png",
        "00002.png",
    ]
    assert (found[-1].width, found[-1].preset, found[-1].negative) == (64, "fast", "n")
    together = list(batches(found, 3))
    assert sorted(map(len, together)) == [2, 2, 3] and {
        len({p.together for p in batch}) for batch in together
    } == {1}
    assert pictures([Row("a", seed=2**64 - 1)], Shared(images=2), "plain")[1].seed == 0


@pytest.mark.parametrize("layout, asked", [("dpg", 3), ("coco", 2)])
def test_benchmarks_have_their_number_of_pictures(layout: str, asked: int) -> None:
    with pytest.raises(ValueError, match=f"--images is {asked}"):
        for_layout(Shared(), layout, asked)
    assert for_layout(Shared(), "geneval", None).images == 4


# ------------------------------------------------------------------------------------------------ manifests
def test_a_manifest_knows_what_is_left(tmp_path: Path) -> None:
    found = pictures([Row(text) for text in PROMPTS], Shared(), "plain")
    manifest = Manifest(tmp_path, {"model": "m"})
    for picture in found[:2]:
        (tmp_path / picture.file).write_bytes(b"x")
    manifest.add(found[0])
    assert Manifest(tmp_path, {"model": "m"}).left(found) == found[2:]  # the second was whole
    (tmp_path / found[0].file).unlink()
    assert Manifest(tmp_path, {"model": "m"}).left(found) == [found[0], found[2]]


def test_a_line_that_was_cut_off_loses_one_picture_at_most(tmp_path: Path) -> None:
    found = pictures([Row(text) for text in PROMPTS], Shared(), "plain")
    manifest = Manifest(tmp_path, {})
    for picture in found[:2]:
        (tmp_path / picture.file).write_bytes(b"x")
        manifest.add(picture)
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:-20])
    again = Manifest(tmp_path, {})
    assert again.left(found) == found[2:]
    assert {line["file"] for line in Manifest(tmp_path, {}).done.values()} == {p.file for p in found[:2]}


def test_a_folder_of_other_pictures_is_refused(tmp_path: Path) -> None:
    found = pictures([Row(text) for text in PROMPTS], Shared(), "plain")
    manifest = Manifest(tmp_path, {"cfg": 2})
    (tmp_path / found[0].file).write_bytes(b"x")
    manifest.add(found[0])
    with pytest.raises(ValueError, match="another cfg"):
        Manifest(tmp_path, {"cfg": 3})
    with pytest.raises(ValueError, match="another row of the sheet"):
        Manifest(tmp_path, {"cfg": 2}).left(pictures([Row("other")], Shared(), "plain"))
    (tmp_path / NAME).write_text("[]\n{}\n")
    with pytest.raises(ValueError, match="choose another folder"):
        Manifest(tmp_path, {"cfg": 2})


# ------------------------------------------------------------------------------------------------- command
def test_a_sheet_is_drawn_and_gone_on_with(tmp_path: Path, capsys) -> None:
    """In batches of any size the pictures are those of ``generate``; nothing is drawn twice."""
    text = "prompt,seed,preset\na red circle,,\ntwo blue squares,,fast\na green star,9,\n"
    out = tmp_path / "out"
    options = ("--prompts", sheet(tmp_path, "a.csv", text), "--out", out, "--seed", 4)
    first = rendered(capsys, *options, "--limit", 2, "--batch", 1)
    assert (first["images"], first["drawn"], first["there_before"]) == (2, 2, 0)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    second = rendered(capsys, *options, "--batch", 3)
    assert (second["images"], second["drawn"], second["there_before"]) == (3, 1, 2)
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    third = rendered(capsys, *options)
    assert third["drawn"] == 0 and third["images_per_second"] is None
    alone = Pipeline.embedded()("a green star", seed=9).images[0].numpy()
    with Image.open(out / "00002.png") as image:
        assert np.array_equal(np.asarray(image), alone)
        assert image.text == {"prompt": "a green star", "seed": "9", "preset": "off"}
    assert main(["render", *map(str, options), "--cfg", "3"]) == 2
    assert "another cfg" in capsys.readouterr().err


def test_layouts_are_those_that_scorers_read(tmp_path: Path, capsys) -> None:
    line = {"tag": "counting", "include": [], "prompt": PROMPTS[0]}
    geneval = sheet(tmp_path, "g.jsonl", json.dumps(line))
    small = ("--preset", "turbo")
    rendered(
        capsys, "--prompts", geneval, "--out", tmp_path / "g", "--layout", "geneval", "--images", 2, *small
    )
    assert json.loads((tmp_path / "g/00000/metadata.jsonl").read_text()) == line
    assert sorted(file.name for file in (tmp_path / "g/00000/samples").iterdir()) == ["0000.png", "0001.png"]
    (tmp_path / "prompts").mkdir()
    sheet(tmp_path / "prompts", "one.txt", PROMPTS[1])
    rendered(capsys, "--prompts", tmp_path / "prompts", "--out", tmp_path / "d", "--layout", "dpg", *small)
    with Image.open(tmp_path / "d/one.png") as whole, Image.open(tmp_path / "d/parts/one_3.png") as last:
        width, height = last.size
        assert whole.size == (2 * width, 2 * height)
        assert np.array_equal(np.asarray(whole)[height:, width:], np.asarray(last))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--images", "0"], "--images is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--preset", "warp"], "warp"),
        (["--layout", "dpg", "--images", "2"], "--images is 2"),
        (["--ray", "local", "--workers", "0"], "--workers is 0"),
        (["--transformer", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_bad_options_end_in_a_line(options: list[str], message: str, tmp_path: Path, capsys) -> None:
    prompts = sheet(tmp_path, "a.txt", PROMPTS[0])
    assert main(["render", "--prompts", str(prompts), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("out/*.png"))


def test_columns_are_what_the_help_lists() -> None:
    assert COLUMNS == ("prompt", "negative", "seed", "width", "height", "preset", "images", "name")
    assert "row" not in described(pictures([Row("a")], Shared(), "plain")[0])


def test_the_artwork_model_draws_a_sheet_of_classes(tmp_path: Path, capsys) -> None:
    """Of the embedded models the one that is asked for, and its own names."""
    classes = sheet(tmp_path, "classes.txt", "pizza\ncat\n")
    options = ("--prompts", classes, "--out", tmp_path / "out", "--model", "artwork", "--preset", "turbo")
    assert rendered(capsys, *options)["drawn"] == 2
    identity = json.loads((tmp_path / "out" / NAME).read_text().splitlines()[0])["job"]
    assert identity["transformer"][0] == "artwork_transformer.safetensors"
    with Image.open(tmp_path / "out/00001.png") as image:
        assert image.size == (256, 256)
