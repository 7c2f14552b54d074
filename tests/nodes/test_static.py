"""The node layer without ComfyUI: the import guard, help pages, and workflows against the nodes' sources."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.wires import hidden_wires

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"Combo", "Int", "Float", "String", "Boolean", "OwnNumber"}
# What our workflows take from ComfyUI itself: sockets and number of widget values.
CORE = {
    "CLIPTextEncode": (["clip"], 1),
    "ConditioningSetTimestepRange": (["conditioning"], 2),
    "ConditioningSetAreaPercentage": (["conditioning"], 5),
    "ConditioningCombine": (["conditioning_1", "conditioning_2"], 0),
    "VAEDecode": (["samples", "vae"], 0),
    "SaveImage": (["images"], 1),
    "PrimitiveInt": ([], 2),
    "UNETLoader": ([], 2),
    "CLIPLoader": ([], 3),
    "LoadImage": ([], 2),
    "PreviewImage": (["images"], 0),
    "LatentFromBatch": (["samples"], 2),
    "RebatchImages": (["images"], 1),
    "ImageGrid": (["images"], 4),
    "SolidMask": ([], 3),
    "EmptyImage": ([], 4),
    "ImageCompositeMasked": (["destination", "source", "mask"], 3),
    "SaveAnimatedWEBP": (["images"], 5),
    "MaskComposite": (["destination", "source"], 3),
    "VAEEncode": (["pixels", "vae"], 0),
    "SetLatentNoiseMask": (["samples", "mask"], 0),
    "ImageCrop": (["image"], 4),
    "ImagePadForOutpaint": (["image"], 5),
}
NOTES = {"Note", "MarkdownNote", "Reroute"}  # the page's own, which run nothing
HUBS = (
    "https://huggingface.co/FoundationVision/Infinity/resolve/main/",
    "https://huggingface.co/google/flan-t5-xl/resolve/main/",
    "https://huggingface.co/FoundationVision/var/resolve/main/",
    "https://huggingface.co/taocrayon/STAR/resolve/main/",
    "https://huggingface.co/HiDream-ai/VAREdit/resolve/main/",
    "https://huggingface.co/EvanEternal/VARestorer/resolve/main/weights/",
    "https://huggingface.co/mit-han-lab/hart-0.7b-1024px/resolve/main/",
    "https://huggingface.co/mit-han-lab/Qwen2-VL-1.5B-Instruct/resolve/main/",
    "https://huggingface.co/yresearch/",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/",
)


def keyword(call: ast.Call, name: str) -> Any:
    """A literal keyword of a call, or None."""
    found = next((item.value for item in call.keywords if item.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def input_calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(kind, call) of every ``describe(io.Kind.Input, ...)`` and ``OwnNumber(...)``, as in the source."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    kinds = {call: kind_of(call) for call in calls}
    return sorted(((kind, call) for call, kind in kinds.items() if kind), key=lambda pair: pair[1].lineno)


def kind_of(call: ast.Call) -> str:
    """Which kind of input a call makes; empty for other calls."""
    made = getattr(call.func, "id", "")
    if made == "describe" and getattr(call.args[0], "attr", "") == "Input":
        return ast.unparse(call.args[0]).split(".")[-2]
    return made if made == "OwnNumber" else ""


def schema_of(file: str) -> tuple[list[str], int]:
    """Sockets and number of widget values of the one node of a file."""
    return described(ast.parse((ROOT / "nodes" / file).read_text(encoding="utf-8")))


def described(tree: ast.AST) -> tuple[list[str], int]:
    """Sockets and number of widget values of the inputs that a source describes."""
    calls = input_calls(tree)
    widgets = [call for kind, call in calls if kind in WIDGETS]
    # The seed has a second value on the page: what happens to it after a run.
    count = sum(2 if keyword(call, "control_after_generate") else 1 for call in widgets)
    return [call.args[1].value for kind, call in calls if kind not in WIDGETS], count


def shared(function: str) -> tuple[list[str], int]:
    """The same of what nodes that draw share."""
    tree = ast.parse((ROOT / "nodes" / "host" / "drawing.py").read_text(encoding="utf-8"))
    return described(next(node for node in ast.walk(tree) if getattr(node, "name", "") == function))


@pytest.fixture(scope="module")
def schemas() -> dict[str, tuple[list[str], int]]:
    """Sockets and number of widget values of our nodes, read from the sources."""
    drawing = shared("drawing_inputs")

    def drawn(file: str) -> tuple[list[str], int]:
        sockets, count = schema_of(file)
        return sockets + drawing[0], count + drawing[1]

    return {
        "StageVARLoad": ([], 2),
        "StageVARLoadModel": ([], 3),
        "StageVARLoadTokenizer": ([], 1),
        "StageVARLoadTextEncoder": ([], 3),
        "StageVARLoadLora": (["model"], 2),
        "StageVARSampler": drawn("sampling.py"),
        "StageVARContinue": schema_of("continuing.py"),
        "StageVAREditByText": drawn("edit_by_text.py"),
        "StageVARRestore": schema_of("restoring.py"),
        "StageVARClassLabel": schema_of("labels.py"),
        "StageVAREdit": schema_of("editing.py"),
        "StageVARMaskPreview": schema_of("mask_preview.py"),
        "StageVARPasteBack": schema_of("paste_back.py"),
        "StageVARVary": schema_of("varying.py"),
        "StageVARScales": schema_of("scales.py"),
        "StageVARAccelerate": schema_of("acceleration.py"),
        "StageVARStageSchedule": schema_of("schedules.py"),
        "StageVARStageReport": schema_of("report.py"),
        "StageVARPickDifferent": schema_of("variety.py"),
    }


def declared_ids() -> set[str]:
    """Every node_id in the sources."""
    ids = set()
    for source in (ROOT / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and keyword(node, "node_id"):
                ids.add(keyword(node, "node_id"))
    return ids


def test_tools_that_read_sources_find_every_node() -> None:
    """They look for this text, whatever stands before it."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    assert set(re.findall(r"\bSchema\(\s*node_id=\"(\w+)\"", text)) == declared_ids()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_package_imports_without_comfyui() -> None:
    """As a package in a folder of any name, with nothing of ComfyUI on the path."""
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module;"
        "spec.loader.exec_module(module); print(module.WEB_DIRECTORY, hasattr(module, 'NODE_CLASS_MAPPINGS'))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert result.stdout.split() == ["./web", "False"], result.stderr


def test_errors_inside_the_nodes_are_not_hidden(tmp_path: Path) -> None:
    """With a ComfyUI that cannot be imported the import fails, so that its log says why."""
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "__init__.py").write_text("", encoding="utf-8")
    code = (
        f"import importlib.util, sys; sys.path.insert(0, {str(tmp_path)!r});"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}]);"
        "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module;"
        "spec.loader.exec_module(module)"
    )
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert result.returncode and "comfy_api" in result.stderr


def test_every_node_has_a_prefixed_id_and_a_help_page(schemas: dict) -> None:
    ids = declared_ids()
    assert ids >= set(schemas) and all(name.startswith("StageVAR") for name in ids)
    pages = {page.stem: page for page in (ROOT / "web" / "docs").glob("*.md")}
    assert set(pages) == ids
    # The page asks for its own language first, where a missing file is a 404, then for the plain one.
    assert {page.parent.name for page in (ROOT / "web" / "docs").glob("*/en.md")} == ids
    for name, page in pages.items():
        assert page.with_suffix("").joinpath("en.md").read_bytes() == page.read_bytes(), name


def test_sockets_stay_in_their_order(schemas: dict) -> None:
    """Stored workflows know sockets and widget values by position: new ones go to the end."""
    sockets = ["model", "vae", "positive", "negative", "edit", "latent"]
    assert schemas["StageVARSampler"] == (sockets, 12)
    assert schemas["StageVARContinue"] == (["model", "vae", "latent", "positive", "negative"], 6)
    assert schemas["StageVAREditByText"] == (["model", "vae", "image", "positive", "negative"], 7)
    assert schemas["StageVARRestore"] == (["model", "vae", "image", "positive", "upscale_model"], 4)
    assert schemas["StageVARClassLabel"] == ([], 2)
    assert schemas["StageVAREdit"] == (["model", "vae", "image", "mask"], 0)
    assert schemas["StageVARMaskPreview"] == (["model", "image", "mask"], 0)
    assert schemas["StageVARPasteBack"] == (["original", "drawn", "mask"], 1)
    assert schemas["StageVARVary"] == (["model", "vae", "image", "latent"], 1)
    assert schemas["StageVARScales"] == (["latent", "vae"], 1)
    assert schemas["StageVARAccelerate"] == (["model", "schedule"], 8)
    assert schemas["StageVARStageSchedule"] == ([], 6)
    assert schemas["StageVARStageReport"] == (["report"], 0)
    assert schemas["StageVARPickDifferent"] == (["latent", "images"], 1)


def options(call: ast.Call, tree: ast.AST) -> set[str | None]:
    """Names of a call's keywords, those of the ``**`` dictionaries of its file among them."""
    names = {item.arg for item in call.keywords}
    spread = {
        item.value.id for item in call.keywords if item.arg is None and isinstance(item.value, ast.Name)
    }
    for node in ast.walk(tree):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if getattr(target, "id", "") in spread and isinstance(node.value, ast.Dict):
            names |= {key.value for key in node.value.keys}
    return names


def test_inputs_are_explained_and_floats_are_not_rounded_by_the_page() -> None:
    for source in (ROOT / "nodes").glob("*.py"):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for kind, call in input_calls(tree):
            given = options(call, tree)
            assert "tooltip" in given, f"{source.name}:{call.lineno}"
            if kind == "Float":
                assert {"step", "round"} <= given, f"{source.name}:{call.lineno}"


def test_there_are_workflows_for_every_model_and_the_first_ones_need_no_download() -> None:
    """Names stay once they are released, so later ones without a download follow the others; they say it."""
    names = [path.stem for path in WORKFLOWS]
    assert [int(name[:2]) for name in names] == list(range(1, len(names) + 1))
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)
    without = [name.endswith("_no_download") for name in names]
    assert all(without[:14]) and without == [not read(path).get("models") for path in WORKFLOWS]
    models = ("Infinity_2B", "Infinity_8B", "STAR", "Switti", "VAR", "VAREdit_2B", "VAREdit_8B", "VARestorer")
    for model in models:
        assert any(name.endswith(model) for name in names), model


def test_the_workflows_are_what_the_script_writes(tmp_path: Path) -> None:
    from templates.workflows import every

    for graph in every():
        graph.write(tmp_path)
    written = {path.relative_to(tmp_path): read(path) for path in tmp_path.rglob("*.json")}
    folder = ROOT / "workflows"
    assert written == {path.relative_to(folder): read(path) for path in folder.rglob("*.json")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_says_its_versions_and_fits_the_view(path: Path) -> None:
    """The versions are those of the project; the first view shows all of it in the window of a laptop.

    Without one early Vue pages fit the view while they measure the nodes, and tear the layout apart.
    """
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    setup = (ROOT / "scripts" / "testbed" / "bootstrap.py").read_text(encoding="utf-8")
    pack = re.search(r'^version = "(.+)"', project, re.MULTILINE)[1]
    host = re.search(r'^requires-comfyui = ">=(.+)"', project, re.MULTILINE)[1]
    workflow = read(path)
    assert workflow["extra"]["frontendVersion"] == re.search(r"frontend-package==([\d.]+)", setup)[1]
    scale, offset = workflow["extra"]["ds"]["scale"], workflow["extra"]["ds"]["offset"]
    for node in workflow["nodes"]:
        for axis, (low, high) in enumerate(((60, 1536), (80, 864))):
            begin = node["pos"][axis] - 30 * axis
            seen = [
                (place + offset[axis]) * scale for place in (begin, node["pos"][axis] + node["size"][axis])
            ]
            assert low <= seen[0] and seen[1] <= high, (node["type"], seen)
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            ours = node["type"].startswith("StageVAR")
            told = ("stagevar", pack) if ours else ("comfy-core", host)
            assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == told
        assert ("bgcolor" in node) == (
            node["type"] == "MarkdownNote"
        )  # its own is hard to read on dark pages


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_an_app_panel_of_what_it_has(path: Path) -> None:
    workflow, twin = read(path), read(path.parent / "api" / path.name)
    panel = workflow["extra"]["linearData"]
    assert panel["inputs"] and panel["outputs"]
    for node, widget in panel["inputs"]:
        assert not isinstance(twin[str(node)]["inputs"][widget], list)
    assert all(twin[str(node)] for node in panel["outputs"])
    assert all(node["_meta"]["title"] for node in twin.values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_note_names_samplers_by_where_they_are(path: Path) -> None:
    """Beside each other they are a left and a right one, in a column an upper and a lower one."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    note = next(node for node in nodes if node["type"] == "MarkdownNote")["widgets_values"][0]
    drawing = ("StageVARSampler", "StageVAREditByText")
    columns = {node["pos"][0] for node in nodes if node["type"] in drawing}
    sides = re.findall(r"\b(left|right|upper|lower)\b (?:sampler|one)", note)
    beside = {"left", "right"} if len(columns) > 1 else {"upper", "lower"}
    assert set(sides) <= beside, sides


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_note_has_no_code(path: Path) -> None:
    """Early Vue pages write code in blue on blue."""
    note = next(node for node in read(path)["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    assert "`" not in note


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_wire_runs_behind_a_node(path: Path) -> None:
    assert hidden_wires(read(path)) == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_file_is_found_by_old_and_new_pages(path: Path) -> None:
    """Old pages read the list of the whole workflow; new ones look for the value of a widget."""
    workflow = read(path)
    listed = workflow.get("models", [])
    assert len({(hint["directory"], hint["name"]) for hint in listed}) == len(listed)
    for node in workflow["nodes"]:
        hints = node["properties"].get("models", [])
        assert all(hint in listed for hint in hints)
        assert not hints or hints[0]["name"] == node["widgets_values"][0]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_uses_our_nodes_and_core_nodes_correctly(path: Path, schemas: dict) -> None:
    known = {**schemas, **CORE}
    for node in read(path)["nodes"]:
        if node["type"] in NOTES:
            continue
        assert node["type"] in known, f"{node['type']} is neither ours nor a core node we use"
        sockets, widgets = known[node["type"]]
        named = [entry["name"] for entry in node["inputs"] if "widget" not in entry]
        assert named == sockets, node["type"]
        assert len(node["widgets_values"]) == widgets, node["type"]
        assert node["properties"]["cnr_id"] and node["properties"]["ver"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_links_agree_with_their_nodes(path: Path) -> None:
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for link, source, out, target, into, kind in workflow["links"]:
        output, taken = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert link in output["links"] and taken["link"] == link
        assert output["type"] == kind and taken["type"] in (kind, "*")  # a reroute takes anything
    stored = {link[0] for link in workflow["links"]}
    for node in nodes.values():
        for entry in node.get("inputs", []):
            assert entry.get("link") is None or entry["link"] in stored
        for entry in node.get("outputs", []):
            assert set(entry["links"] or []) <= stored


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_a_twin_that_runs_the_same_nodes(path: Path) -> None:
    twin = read(path.parent / "api" / path.name)
    runs = {str(node["id"]): node["type"] for node in read(path)["nodes"] if node["type"] not in NOTES}
    assert {key: node["class_type"] for key, node in twin.items()} == runs
    for key, node in twin.items():
        links = [value for value in node["inputs"].values() if isinstance(value, list)]
        assert all(source in twin for source, _ in links), key


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_a_thumbnail_and_says_where_its_files_are(path: Path) -> None:
    assert path.with_suffix(".jpg").read_bytes().startswith(b"\xff\xd8")
    loaders = [node for node in read(path)["nodes"] if node["type"].startswith("StageVARLoad")]
    kinds = [node["type"] for node in loaders]
    # Classes and what is only restored need no text encoder, and one node loads all three.
    whole, wordless = "StageVARLoad" in kinds, path.stem.endswith(("_VAR", "_VARestorer"))
    further = {"05_edit_by_text_no_download": 1, "25_generate_edit_restore_2B": 2, "14_lora_no_download": 1}
    assert len(loaders) == (1 if whole else 2 if wordless else 3) + further.get(path.stem, 0)
    for node in loaders:
        hints = node["properties"].get("models", [])
        assert bool(hints) != node["widgets_values"][0].startswith("embedded/"), node["type"]
        for hint in hints:
            assert hint["url"].startswith(HUBS) and hint["url"].endswith(hint["name"].split("/")[-1])
            assert hint["directory"] in ("diffusion_models", "vae", "text_encoders")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_file_of_a_workflow_is_a_value_that_the_page_can_miss(path: Path) -> None:
    """Newer pages look for missing models among the widgets' values alone, older ones in the root's list."""
    workflow = read(path)
    named = {value for node in workflow["nodes"] for value in node.get("widgets_values", [])}
    hints = {hint["name"] for node in workflow["nodes"] for hint in node["properties"].get("models", [])}
    assert hints <= named and hints == {hint["name"] for hint in workflow.get("models", [])}
    for name in hints:
        if shard := re.search(r"-00001-of-(\d{5})", name):
            every = [f"-{index:05d}-of-{shard[1]}" for index in range(1, int(shard[1]) + 1)]
            assert {name.replace(shard[0], part) for part in every} <= hints


@pytest.mark.parametrize(
    ("plain", "accelerated"),
    [
        ("19_class_to_image_VAR", "20_faster_VAR"),
        ("17_text_to_image_STAR", "18_faster_STAR"),
        ("26_text_to_image_HART", "27_faster_HART"),
        ("28_text_to_image_Switti", "29_faster_Switti"),
        ("30_artwork_no_download", "31_artwork_faster_no_download"),
    ],
)
def test_the_accelerated_workflow_is_the_plain_one_with_a_preset(plain: str, accelerated: str) -> None:
    """The same models, prompt, seed and settings, so that the two can be compared."""

    def inputs(name: str) -> dict[str, dict]:
        twin = read(ROOT / "workflows" / "api" / f"{name}.json")
        return {
            node["class_type"]: {k: v for k, v in node["inputs"].items() if not isinstance(v, list)}
            for node in twin.values()
        }

    with_it = inputs(accelerated)
    assert with_it.pop("StageVARAccelerate")["preset"] == "balanced"
    assert with_it.pop("StageVARStageReport") == {}
    assert with_it == inputs(plain)


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS if path.stem.endswith("_no_download")])
def test_the_embedded_workflows_need_no_download(name: str) -> None:
    twin = read(ROOT / "workflows" / "api" / f"{name}.json")
    names = [
        value for node in twin.values() for key, value in node["inputs"].items() if key.endswith("_name")
    ]
    names = [name for name in names if name != "none" and not name.startswith("artwork: ")]
    assert len(names) in (1, 2, 3) and all(name.startswith("embedded/") for name in names)


def test_the_compared_presets_share_everything_else() -> None:
    """One loader, one seed, and the same settings in all three samplers."""
    twin = read(ROOT / "workflows" / "api" / "04_compare_presets_no_download.json")
    of = {
        kind: [n["inputs"] for n in twin.values() if n["class_type"] == kind] for kind in schemas_used(twin)
    }
    assert [inputs.pop("preset") for inputs in of["StageVARAccelerate"]] == ["off", "balanced", "paper"]
    assert len({json.dumps(inputs) for inputs in of["StageVARAccelerate"]}) == 1
    samplers = [{key: v for key, v in inputs.items() if key != "model"} for inputs in of["StageVARSampler"]]
    assert len({json.dumps(inputs) for inputs in samplers}) == 1 and isinstance(samplers[0]["seed"], list)


def schemas_used(twin: dict) -> set[str]:
    """The node types of a workflow in API format."""
    return {node["class_type"] for node in twin.values()}
