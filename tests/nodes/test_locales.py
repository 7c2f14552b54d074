"""Names and texts of the nodes in other languages, against the English ones, which a script writes.

How a left-over English sentence is found: what remains of a text without addresses, file names and quotations
may hold no Latin word but names of products, of techniques, and of options.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.locales import CORE, LANGUAGES, LOCALES, ROOT, definitions

# Words that stay as they are in every language.
NAMES = {
    *(
        "StageVAR",
        "Infinity",
        "VAR",
        "STAR",
        "HART",
        "VAREdit",
        "VARestorer",
        "ComfyUI",
        "ImageNet",
        "DiffBIR",
        "Switti",
        "CLIP-L",
        "CLIP-bigG",
        "NVIDIA",
        "Turing",
        "VNNI",
        "AR",
        "SwinIR",
    ),
    *("Stable", "Diffusion", "Flan", "XL", "PEFT", "cloneofsimo", "lora", "kohya-ss", "LoRA", "Lanczos"),
    *("Transformer", "Tokenizer", "Token", "Latent", "VAE", "CLIP", "JSON", "GPU", "CPU", "FLOPs", "px", "n"),
    *(
        "embedded",
        "torch",
        "compile",
        "triton",
        "C",
        "calibrate",
        "python",
        "m",
        "vae",
        "clip",
        "cfg",
        "json",
    ),
}
OWN_NUMBERS = {"auto"}  # what inputs take that are a number or the model's own
ADDRESS = re.compile(
    r"https?://[\w./-]*\w|models/\w+|[\w*/-]+(?:\.index|\.safetensors)*\.(?:pth|safetensors|json|py)\b",
    re.ASCII,
)
QUOTED = re.compile(r"「[^」]*」|“[^”]*”")
WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
SYNTAX = re.compile(r"[{}|@]")  # what the page's translator takes for a variable, a plural or a link


def texts(nodes: dict[str, dict]) -> dict[tuple[str, ...], str]:
    """Every text by its path."""

    def walk(value: object, path: tuple[str, ...]) -> dict[tuple[str, ...], str]:
        if isinstance(value, str):
            return {path: value}
        return {key: text for name, part in value.items() for key, text in walk(part, (*path, name)).items()}

    return walk(nodes, ())


def options() -> dict[str, set[str]]:
    """The options of inputs that have them, by the input's name, as the sources of the nodes write them."""
    from stagevar_core.acceleration.presets import PRESETS
    from stagevar_core.acceleration.reduction import RESTORATIONS
    from stagevar_core.acceleration.settings import GUIDANCE, TOKENS

    return {
        **{"preset": set(PRESETS), "guidance": set(GUIDANCE), "tokens": set(TOKENS)},
        **{"restoration": set(RESTORATIONS), "keep": set(TOKENS), "refine": {"auto", "off", "mixed", "full"}},
        **{"decoding": {"fast", "full"}, "stop_after": {"structure", "semantic"}, "task": {"auto"}},
        **{"schedule": set(PRESETS), "weight_dtype": {"default"}, "class_name": {"no class", "artwork"}},
    }


@pytest.fixture(scope="module")
def english() -> dict[tuple[str, ...], str]:
    return texts(definitions("en"))


def test_there_is_a_language_besides_english() -> None:
    assert "zh" in LANGUAGES and (LOCALES / "en" / "nodeDefs.json").is_file()


def test_no_text_holds_what_the_page_would_take_for_syntax(english: dict) -> None:
    for language in ("en", *LANGUAGES):
        assert not [path for path, text in texts(definitions(language)).items() if SYNTAX.search(text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text_and_nothing_else(language: str, english: dict) -> None:
    there = texts(definitions(language))
    assert sorted(there) == sorted(english)
    assert all(text.strip() for text in there.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_addresses_and_options_are_the_same(language: str, english: dict) -> None:
    """Options appear by their values, which no page translates."""
    known = options()
    for path, text in texts(definitions(language)).items():
        assert sorted(NUMBER.findall(text)) == sorted(NUMBER.findall(english[path])), path
        assert sorted(ADDRESS.findall(text)) == sorted(ADDRESS.findall(english[path])), path
        for option in known.get(path[-2], OWN_NUMBERS) | OWN_NUMBERS:
            word = re.compile(rf"(?<![\w-]){re.escape(option)}(?![\w-])", re.ASCII)
            if path[-1] == "tooltip" and word.search(english[path]):
                assert word.search(text), (path, option)


@pytest.mark.parametrize("language", LANGUAGES)
def test_inputs_are_named_as_the_page_names_them(language: str, english: dict) -> None:
    """An English text names inputs by their ids, another language by its own names for them."""
    nodes = definitions(language)
    for path, text in texts(nodes).items():
        own = nodes[path[0]]["inputs"]
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", ADDRESS.sub("", english[path])):
            if name in own and path[-1] != "name":
                assert own[name]["name"] in text, (path, name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_input_has_one_name_in_all_nodes(language: str) -> None:
    names: dict[str, set[str]] = {}
    for node in definitions(language).values():
        for name, said in node["inputs"].items():
            names.setdefault(name, set()).add(said["name"])
    assert not {name: found for name, found in names.items() if len(found) > 1}


@pytest.mark.parametrize("language", LANGUAGES)
def test_quoted_names_are_those_of_nodes_inputs_and_options(language: str) -> None:
    nodes = definitions(language)
    names = {node["display_name"] for node in nodes.values()}
    names |= {name.partition("（")[0] for name in names} | CORE[language]
    named = {part["name"] for node in nodes.values() for part in node["inputs"].values()}
    options_known = {option for found in options().values() for option in found}
    for path, text in texts(nodes).items():
        for quoted in re.findall("「([^」]*)」", text):
            assert quoted in names | named | options_known, (path, quoted)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_english_was_left_over(language: str) -> None:
    """A sentence would hold words that are no names, articles and verbs among them."""
    known = {option for found in options().values() for option in found} | OWN_NUMBERS | NAMES
    known |= {part for option in known for part in WORD.findall(option)}
    nodes = definitions(language)
    for path, text in texts(nodes).items():
        bare = QUOTED.sub(" ", ADDRESS.sub(" ", text))
        bare = re.sub(r"\b\w*[\d_]\w*\b", " ", bare, flags=re.ASCII)  # ids, and sizes of models
        assert not set(WORD.findall(bare)) - known, (path, set(WORD.findall(bare)) - known)
        if path[-1] in ("description", "tooltip"):
            assert re.search(r"[\u4e00-\u9fff]", text) or language != "zh", path


def test_names_in_another_language_keep_the_words_that_are_searched(english: dict) -> None:
    """Pages of 0.3.75 search ids and display names alone, and people know models by their names."""
    for language in LANGUAGES:
        for name, node in definitions(language).items():
            for word in (
                "StageVAR",
                "Infinity",
                "VAR",
                "STAR",
                "VAE",
                "CLIP",
                "LoRA",
                "VAREdit",
                "torch.compile",
            ):
                if re.search(rf"\b{word}\b", english[name, "display_name"]):
                    found = re.search(rf"(?<![A-Za-z]){word}(?![A-Za-z])", node["display_name"])
                    assert found, (language, name, word)


def test_the_blueprint_is_what_the_script_writes_and_every_system_reads_it(tmp_path: Path) -> None:
    """ComfyUI 0.3.75 reads blueprints in the encoding of the system."""
    from templates.blueprint import write

    made = write(tmp_path)
    folder = ROOT / "subgraphs"
    assert [path.name for path in folder.iterdir()] == [made.name]
    assert (folder / made.name).read_bytes().decode("ascii") == made.read_text(encoding="ascii")


def test_the_blueprint_holds_together() -> None:
    """Links, sockets and widgets name each other; its node is the only one outside, as pages ask."""
    (path,) = (ROOT / "subgraphs").iterdir()
    stored = json.loads(path.read_text(encoding="ascii"))
    (node,), (inside,) = stored["nodes"], stored["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == path.stem
    nodes = {entry["id"]: entry for entry in inside["nodes"]}
    for link in inside["links"]:
        ends = nodes.get(link["target_id"], {"inputs": [{"link": link["id"], "type": link["type"]}]})
        end = ends["inputs"][link["target_slot"]]
        assert end["link"] == link["id"] and end["type"] in (link["type"], "*")
        if link["origin_id"] in nodes:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        else:
            source = inside["inputs"][link["origin_slot"]]
            assert link["id"] in source["linkIds"] and end["widget"]["name"] == source["name"]
    wanted = ["text", "seed", "control_after_generate", "width", "height", "preset", "model_name"]
    assert [name for _, name in node["properties"]["proxyWidgets"]] == wanted
    assert len(node["widgets_values"]) == len(wanted)
    assert [entry["name"] for entry in node["inputs"]] == [entry["name"] for entry in inside["inputs"]]
    assert [entry["type"] for entry in node["outputs"]] == ["IMAGE"]
