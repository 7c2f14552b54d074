"""Languages and the blueprint, as a real ComfyUI serves them to the page."""

from __future__ import annotations

from pathlib import Path

from testbed.comfy_server import PACK_NAME, ComfyServer
from testbed.environment import ROOT, python_says

from tests.support.locales import CORE, LANGUAGES, definitions
from tests.support.testbed import Bed, missing


def test_english_is_what_the_script_writes(comfy_server: ComfyServer) -> None:
    from locales import PLACE, text
    from locales import definitions as made

    assert PLACE.read_text(encoding="utf-8") == text(made(comfy_server.object_info())), (
        "run python3 scripts/locales.py"
    )


def test_every_language_is_served(comfy_server: ComfyServer) -> None:
    served = comfy_server.get("/i18n")
    for language in ("en", *LANGUAGES):
        nodes = served[language]["nodeDefs"]
        assert {name: nodes[name] for name in definitions(language)} == definitions(language)


def test_nodes_of_comfyui_are_named_as_its_own_page_names_them(bed: Bed) -> None:
    """Texts of a language name them, so that a user must find them under that name."""
    package = python_says(bed.python, "import comfyui_frontend_package as page; print(*page.__path__)")
    if package is None:
        missing("no front end in the test bed")
    found = (Path(package) / "static" / "assets").glob("nodeDefs-*.js")
    files = [path.read_text(encoding="utf-8") for path in found]
    for names in CORE.values():
        asked = [
            [f"display_name:{quote}{name}{quote}" for quote in '"`'] for name in names
        ]  # by its minifier
        assert any(all(any(text in file for text in texts) for texts in asked) for file in files)


def test_the_blueprint_is_served(comfy_server: ComfyServer) -> None:
    (path,) = (ROOT / "subgraphs").iterdir()
    listed = comfy_server.get("/global_subgraphs")
    key = next(key for key, found in listed.items() if found["info"]["node_pack"].endswith(PACK_NAME))
    assert listed[key]["name"] == path.stem and "data" not in listed[key]
    assert comfy_server.get(f"/global_subgraphs/{key}")["data"] == path.read_text(encoding="ascii")


def test_what_is_inside_the_blueprint_makes_a_picture(comfy_server: ComfyServer) -> None:
    from templates.blueprint import fast_text_to_image

    graph, _, (decoded, _) = fast_text_to_image()
    images = [str(decoded.id), 0]
    save = {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": "StageVAR_blueprint"}}
    entry = comfy_server.run(graph.api | {"99": save})
    assert len(comfy_server.images(entry)) == 1
