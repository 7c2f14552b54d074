"""The page in a real browser: what a user does with the shipped workflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, Route, TimeoutError, sync_playwright
from testbed.comfy_server import PACK_NAME, ComfyServer, Json, read_json, sampler_node, shipped_workflow
from testbed.environment import ROOT

from tests.support.events import value_of
from tests.support.testbed import Bed, missing

pytestmark = pytest.mark.browser

WORKFLOW = "01_text_to_image_no_download"
LAUNCH = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
LAUNCH += ["--no-first-run", "--disable-component-update", "--disable-sync", "--disable-quic"]
MINUTE = 60_000

READY = """() => window.app?.graph && window.app.extensionManager
    && window.LiteGraph?.registered_node_types?.StageVARSampler"""
DROP = """({name, text}) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([text], name, {type: 'application/json'}));
    for (const type of ['dragenter', 'dragover', 'drop']) {
        const event = new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true});
        document.querySelector('#graph-canvas').dispatchEvent(event);
    }
}"""
TYPES = "() => window.app.graph.nodes.map(node => node.type)"
# Values cross the border as JSON text: the driver would turn `undefined` into `null` in objects.
CONVERT = """async text => {
    await window.app.loadGraphData(JSON.parse(text));
    return JSON.stringify((await window.app.graphToPrompt()).output);
}"""
SHOWN_IMAGE = """name => {
    const named = found => [found.type, found.title].includes(name ?? 'SaveImage');
    const node = window.app.graph.nodes.find(named);
    const drawn = node?.imgs?.[0] ?? document.querySelector(`[data-node-id="${node?.id}"] img`);
    return drawn?.naturalWidth ? [drawn.naturalWidth, drawn.naturalHeight] : null;
}"""
# The red of the upper left pixel of what a node shows.
CORNER = """type => {
    const node = window.app.graph.nodes.find(found => found.type === type);
    const drawn = node.imgs?.[0] ?? document.querySelector(`[data-node-id="${node.id}"] img`);
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [1, 1];
    canvas.getContext('2d').drawImage(drawn, 0, 0);
    return canvas.getContext('2d').getImageData(0, 0, 1, 1).data[0];
}"""
# The texts of our script that can be seen, by node.
SAID = """() => {
    const seen = {};
    for (const node of window.app.graph.nodes) {
        const box = node.widgets?.find(widget => widget.name === 'stagevar_result')?.element;
        const lines = [...(box?.isConnected ? box.querySelectorAll('p') : [])];
        const shown = lines.filter(line => line.getBoundingClientRect().height > 3);
        if (shown.length) seen[node.type] = shown.map(line => line.textContent);
    }
    return seen;
}"""
SAYS = f"words => ({SAID})().StageVARSampler?.[0].includes(words)"
STORED = """() => JSON.stringify(window.app.graph.serialize().nodes.find(
    node => node.type === 'StageVARSampler'))"""
COLORS = """() => ['VAR_MODEL', 'STAGE_SCHEDULE', 'STAGE_REPORT', 'STAGE_EDIT'].map(type => [
    window.app.canvas.default_connection_color_byType[type],
    window.app.canvas.constructor.link_type_colors[type],
    getComputedStyle(document.body).getPropertyValue('--color-datatype-' + type),
])"""
# Every text that was shown, from now on.
WATCH = f"""() => {{
    window.said = [];
    const look = () => window.said.push(...Object.values(({SAID})()).flat());
    setInterval(look, 30);
    // A run may be over in less than that; this looks when the pack's own script has shown a scale.
    window.app.api.addEventListener("stagevar.progress", look);
}}"""
# A new node on the way from the first output of one node to an input of another.
INSERT = """([type, source, target, input]) => {
    const find = wanted => window.app.graph.nodes.find(node => node.type === wanted);
    const node = window.LiteGraph.createNode(type), to = find(target);
    window.app.graph.add(node);
    node.pos = [to.pos[0], to.pos[1] - 120];
    find(source).connect(0, node, 0);
    node.connect(0, to, to.findInputSlot(input));
}"""
NUMBERS = ("cfg", "temperature", "top_k", "top_p")
FRESH = """() => {
    const node = window.LiteGraph.createNode('StageVARSampler');
    return JSON.stringify(Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value])));
}"""
# Pairs of nodes of which one covers a part of the other; a node's position is below its title bar.
OVERLAPS = """() => {
    const boxes = window.app.graph.nodes.map(node => ({
        title: node.title,
        left: node.pos[0], right: node.pos[0] + node.size[0],
        top: node.pos[1] - 30, bottom: node.pos[1] + node.size[1],
    }));
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const covered = (a, i) => boxes.slice(i + 1).filter(b => meet(a, b));
    return boxes.flatMap((a, i) => covered(a, i).map(b => `${a.title} and ${b.title}`));
}"""

# Nodes whose text takes more room than it needs, or asks a Vue page for what is left.
STRETCHED = """() => window.app.graph.nodes.filter(node => {
    const widget = node.widgets?.find(widget => widget.name === 'stagevar_result');
    if (!widget || !window.LiteGraph.vueNodesMode) return widget && !widget.computeLayoutSize;
    const needed = widget.element.firstChild.offsetHeight;
    return widget.computeLayoutSize || widget.element.parentElement.offsetHeight > needed + 20;
}).map(node => node.type)"""


@pytest.fixture(scope="module")
def browser(bed: Bed) -> Iterator[Browser]:
    """A headless Chromium."""
    if bed.chromium is None:
        missing(f"browser tests: {bed.no_browser}")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=bed.chromium, args=LAUNCH)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, comfy_server: ComfyServer) -> Iterator[Page]:
    """A fresh page of our server that reaches nothing else; fails on thrown errors and on our logged ones."""
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    page = context.new_page()

    def only_our_server(route: Route) -> None:
        if route.request.url.startswith((comfy_server.url, "blob:", "data:")):
            route.continue_()
        else:
            route.abort()

    errors: list[str] = []

    def ours(response: Response) -> None:
        if response.status >= 400 and f"/extensions/{PACK_NAME}/" in response.url:
            errors.append(f"{response.status} {response.url}")

    def complaint(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "stagevar.js" in message.location["url"]:
            errors.append(message.text)

    page.route("**/*", only_our_server)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", ours)
    page.on("console", complaint)
    page.goto(comfy_server.url, timeout=2 * MINUTE)
    page.wait_for_function(READY, timeout=2 * MINUTE)
    yield page
    context.close()
    assert not errors


def set_renderer(page: Page, vue: bool) -> None:
    """Chooses between the two ways the page draws nodes."""
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)


def stored_pairs() -> list[tuple[Path, Path]]:
    """Every stored workflow with its twin in API format."""
    pairs = [(path, path.with_suffix(".api.json")) for path in sorted((ROOT / "workflows").glob("*.json"))]
    pairs += [(path, path.parent / "api" / path.name) for path, _ in pairs]
    return [(path, twin) for path, twin in pairs if twin.is_file()]


def without_titles(prompt: Json) -> Json:
    """An API workflow reduced to what is executed."""
    return {node: {key: data[key] for key in ("class_type", "inputs")} for node, data in prompt.items()}


def test_stored_workflows_convert_to_their_api_twins(page: Page) -> None:
    pairs = stored_pairs()
    assert shipped_workflow(WORKFLOW, api=False) in [path for path, _ in pairs]
    for path, twin in pairs:
        converted = json.loads(page.evaluate(CONVERT, path.read_text(encoding="utf-8")))
        assert without_titles(converted) == without_titles(read_json(twin)), path.name


def converted(page: Page, workflow: Json) -> Json:
    """The inputs of the sampler, as the page sends them."""
    prompt = json.loads(page.evaluate(CONVERT, json.dumps(workflow)))
    return prompt[sampler_node(prompt)]["inputs"]


def linked(kind: str, name: str, number: float) -> Json:
    """The shipped workflow with a number that comes from another node, as older pages saved it."""
    workflow = read_json(shipped_workflow(WORKFLOW, api=False))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "StageVARSampler")
    link, node = workflow["last_link_id"] + 1, workflow["last_node_id"] + 1
    workflow.update(last_link_id=link, last_node_id=node)
    place = {
        "id": node,
        "type": kind,
        "pos": [500, 700],
        "size": [210, 82],
        "flags": {},
        "order": 0,
        "mode": 0,
    }
    typed = "INT" if name == "top_k" else "FLOAT"
    out: Json = {"name": typed, "type": typed, "links": [link]}
    if kind == "PrimitiveNode":
        out["widget"] = {"name": name}
    workflow["nodes"].append(
        {**place, "inputs": [], "outputs": [out], "properties": {}, "widgets_values": [number, "fixed"]}
    )
    workflow["links"].append([link, node, 0, sampler["id"], len(sampler["inputs"]), typed])
    sampler["inputs"].append({"name": name, "type": typed, "widget": {"name": name}, "link": link})
    return workflow


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_numbers_of_older_workflows_stay(page: Page, vue: bool) -> None:
    set_renderer(page, vue)
    assert {json.loads(page.evaluate(FRESH))[name] for name in NUMBERS} == {"auto"}
    held: dict[str, Any] = {"cfg": -1, "temperature": -1.0, "top_k": -1, "top_p": 0.9}
    workflow = read_json(shipped_workflow(WORKFLOW, api=False))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "StageVARSampler")
    sampler["widgets_values"][2:6] = held.values()
    assert {name: converted(page, workflow)[name] for name in NUMBERS} == held
    sent = converted(page, linked("PrimitiveNode", "cfg", 3.5))
    assert sent["cfg"] == 3.5 and sent["width"] == 128
    assert converted(page, linked("PrimitiveNode", "top_k", 600))["top_k"] == 600
    source, _ = converted(page, linked("PrimitiveFloat", "cfg", 3.5))["cfg"]
    assert source == str(workflow["last_node_id"] + 1)


def with_seed(path: Path, seed: int) -> str:
    """The text of a stored workflow with another seed, so that the server cannot answer from its cache."""
    workflow = read_json(path)
    for node in workflow["nodes"]:
        if node["type"] in ("StageVARSampler", "PrimitiveInt"):
            node["widgets_values"][0] = seed
    return json.dumps(workflow)


def drop(page: Page, name: str, seed: int) -> None:
    """Drops a shipped workflow onto an empty page, as a user does with a file."""
    page.evaluate("() => window.app.graph.clear()")
    path = shipped_workflow(name, api=False)
    page.evaluate(DROP, {"name": path.name, "text": with_seed(path, seed)})
    page.wait_for_function(f"() => ({TYPES})().includes('StageVARSampler')", timeout=MINUTE)
    page.wait_for_timeout(1000)


def screenshot(page: Page, path: Path) -> None:
    """The whole workflow, for people to look at."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)
    page.screenshot(path=str(path))


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_dropped_workflow_shows_its_image(
    page: Page, comfy_server: ComfyServer, stored_prompt: Json, artifacts: Path, vue: bool
) -> None:
    set_renderer(page, vue)
    drop(page, WORKFLOW, 4711 + vue)
    before = set(comfy_server.get("/history"))
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, timeout=5 * MINUTE)
    shown = page.evaluate(SHOWN_IMAGE)
    screenshot(page, artifacts / f"browser_{'vue' if vue else 'canvas'}.png")
    assert len(set(comfy_server.get("/history")) - before) == 1
    assert shown == [value_of(stored_prompt, "width"), value_of(stored_prompt, "height")]
    assert not page.locator(".p-toast-message-error").all_inner_texts()


def change_and_undo(page: Page) -> None:
    """Pastes a copy of the sampler and takes it back: the page makes every node anew, under its old id."""
    samplers = "() => window.app.graph.nodes.filter(node => node.type === 'StageVARSampler')"
    page.evaluate(f"() => window.app.canvas.selectItems(({samplers})())")
    counts = f"count => ({samplers})().length === count"
    for keys, count in (("Control+c", 1), ("Control+v", 2), ("Control+z", 1)):
        for _ in range(10):  # a page that is still busy with the step before overhears a key
            page.evaluate("() => window.app.canvas.canvas.focus()")
            page.keyboard.press(keys)
            try:
                page.wait_for_function(counts, arg=count, timeout=MINUTE / 10)
                break
            except TimeoutError:
                continue
        assert page.evaluate(counts, count), keys
        page.wait_for_timeout(1000)


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_accelerated_workflow_says_what_was_saved(page: Page, artifacts: Path, vue: bool) -> None:
    """While it runs, after it, after a cached rerun and after a reload; never in a widget's value."""
    set_renderer(page, vue)
    drop(page, "02_faster_no_download", 4721 + vue)
    page.evaluate("""() => window.app.graph.nodes.find(node => node.type === 'StageVARSampler').widgets
        .find(widget => widget.name === 'control_after_generate').value = 'fixed'""")
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.evaluate(WATCH)
    page.keyboard.press("Control+Enter")
    for type_of_node in ("SaveImage", "StageVARStageReport"):
        page.wait_for_function(SHOWN_IMAGE, arg=type_of_node, timeout=5 * MINUTE)
    page.wait_for_function(SAYS, arg="less work", timeout=MINUTE)
    screenshot(page, artifacts / f"browser_accelerated_{'vue' if vue else 'canvas'}.png")
    width, height = page.evaluate(SHOWN_IMAGE, "StageVARStageReport")
    assert width >= 600 and height >= 400
    assert page.evaluate(OVERLAPS) == [] and page.evaluate(STRETCHED) == []
    (line,) = page.evaluate(SAID)["StageVARSampler"]
    assert re.fullmatch(r"balanced: [\d.]+x less work, [\d.]+ s, 128 x 128", line)
    assert set(page.evaluate("() => window.said")) & {f"scale {scale} of 7" for scale in range(1, 8)}
    assert (
        line not in page.evaluate(STORED) and len(json.loads(page.evaluate(STORED))["widgets_values"]) == 12
    )
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(2000)
    page.wait_for_function(SAYS, arg=line, timeout=MINUTE)
    assert page.evaluate(SAID)["StageVARSampler"] == [line]
    change_and_undo(page)
    page.wait_for_function(SAYS, arg=line, timeout=MINUTE)
    assert all(color == one[0] and color for one in page.evaluate(COLORS) for color in one)
    assert not page.locator(".p-toast-message-error").all_inner_texts()
    page.reload()
    page.wait_for_function(READY, timeout=2 * MINUTE)
    page.wait_for_function(SAYS, arg=line, timeout=MINUTE)


OLD = sorted((ROOT / "tests" / "workflows").glob("*/*.json"))


def test_workflows_of_every_released_version_open_with_their_values(page: Page) -> None:
    """Those that were saved after a run, too, in which a text of the page stood among the values."""
    assert len(OLD) >= 15
    for path in OLD:
        run = path.stem == "saved_after_run"
        twin = path.parent / "api" / ("text_to_image_embedded.json" if run else path.name)
        sent = json.loads(page.evaluate(CONVERT, path.read_text(encoding="utf-8")))
        for node, data in read_json(twin).items():
            told = {name: sent[node]["inputs"][name] for name in data["inputs"]}
            if run:
                told["seed"] = data["inputs"].get("seed", told.get("seed"))
            assert sent[node]["class_type"] == data["class_type"]
            assert {name: told[name] for name in data["inputs"]} == data["inputs"], (path, node)
        assert sent[sampler_node(sent)]["inputs"]["refine"] == "auto" if "compare" not in path.stem else True


def test_text_of_a_run_among_later_values_is_mended(page: Page) -> None:
    """A file that an older page saved after a run, and the version after it opened and saved again."""
    path = ROOT / "tests" / "workflows" / "0.2.0" / "saved_after_run.json"
    workflow = read_json(path)
    sampler = next(node for node in workflow["nodes"] if node["type"] == "StageVARSampler")
    status = sampler["widgets_values"][11]
    sampler["widgets_values"][9:] = ["128x128, 7 scales, 11.9 s", True, status, status]
    sent = converted(page, workflow)
    assert sent["refine"] == "auto" and sent["smooth"] is True and sent["batch_size"] == 1


@pytest.mark.parametrize("palette", ["dark", "light"])
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_report_is_drawn_in_the_colours_of_the_page(
    page: Page, artifacts: Path, vue: bool, palette: str
) -> None:
    set_renderer(page, vue)
    page.evaluate("id => window.app.extensionManager.setting.set('Comfy.ColorPalette', id)", palette)
    page.wait_for_timeout(500)
    drop(page, "02_faster_no_download", 4751 + 2 * vue + (palette == "light"))
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, arg="StageVARStageReport", timeout=5 * MINUTE)
    page.wait_for_timeout(500)
    red = page.evaluate(CORNER, "StageVARStageReport")
    screenshot(page, artifacts / f"browser_report_{palette}_{'vue' if vue else 'canvas'}.png")
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    assert red < 60 if palette == "dark" else red > 240


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_comparison_fits_its_places_after_a_run(page: Page, artifacts: Path, vue: bool) -> None:
    """Nodes grow by their previews and pictures; none may end up on top of another."""
    set_renderer(page, vue)
    drop(page, "04_compare_presets_no_download", 4731 + vue)
    page.keyboard.press("Control+Enter")
    reports = "() => window.app.graph.nodes.filter(node => node.type === 'StageVARStageReport')"
    every = f"""() => ({reports})().every(node => node.imgs?.[0]?.naturalWidth
        || document.querySelector(`[data-node-id="${{node.id}}"] img`)?.naturalWidth)"""
    page.wait_for_function(every, timeout=5 * MINUTE)
    screenshot(page, artifacts / f"browser_comparison_{'vue' if vue else 'canvas'}.png")
    assert page.evaluate(OVERLAPS) == []
    assert not page.locator(".p-toast-message-error").all_inner_texts()


def test_compile_nodes_go_between_the_loaders_and_what_uses_them(page: Page, artifacts: Path) -> None:
    set_renderer(page, False)
    drop(page, WORKFLOW, 4741)
    page.evaluate(INSERT, ["StageVARCompile", "StageVARLoadModel", "StageVARSampler", "model"])
    page.evaluate(INSERT, ["StageVARCompileVAE", "StageVARLoadTokenizer", "VAEDecode", "vae"])
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, timeout=5 * MINUTE)
    screenshot(page, artifacts / "browser_compiled.png")
    assert not page.locator(".p-toast-message-error").all_inner_texts()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_picture_is_edited_and_the_second_try_is_said(page: Page, artifacts: Path, vue: bool) -> None:
    """The loader says what the model is, the node what it did; nothing lies on top of another."""
    set_renderer(page, vue)
    drop(page, "05_edit_by_text_no_download", 4751 + vue)
    page.evaluate(WATCH)
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, timeout=5 * MINUTE)
    assert page.evaluate(SHOWN_IMAGE) == page.evaluate(SHOWN_IMAGE, "PreviewImage") == [128, 128]
    said = page.evaluate(SAID)
    (line,) = said["StageVAREditByText"]
    assert re.fullmatch(r"off: nothing left out, [\d.]+ s, 128 x 128 at 128 px", line)
    known = ["edits pictures at 128 px: for StageVAR Edit by Text"]
    assert said.get("StageVARLoadModel", known) == known  # old servers tell nothing of a cached loader
    assert set(page.evaluate("() => window.said")) & {f"scale {scale} of 7" for scale in range(1, 8)}
    screenshot(page, artifacts / f"browser_edit_{'vue' if vue else 'canvas'}.png")
    assert page.evaluate(OVERLAPS) == []
    page.keyboard.press("Control+Enter")  # the seed has changed, the picture and the text have not
    reused = f"() => ({SAID})().StageVAREditByText?.some(line => line.includes('of an earlier run'))"
    page.wait_for_function(reused, timeout=5 * MINUTE)
    assert not page.locator(".p-toast-message-error").all_inner_texts()


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
@pytest.mark.parametrize("name", ["10_inpaint_latent_no_download", "11_outpaint_no_download"])
def test_a_part_is_drawn_anew_and_its_tokens_are_shown(
    page: Page, artifacts: Path, name: str, vue: bool
) -> None:
    """Core's latent nodes end in a picture and a preview; nothing lies on top of another."""
    set_renderer(page, vue)
    drop(page, name, 4761 + vue)
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, timeout=5 * MINUTE)
    assert page.evaluate(SHOWN_IMAGE) == page.evaluate(SHOWN_IMAGE, "PreviewImage") == [128, 128]
    page.wait_for_function(SHOWN_IMAGE, arg="Tokens drawn anew", timeout=MINUTE)
    assert page.evaluate(SHOWN_IMAGE, "Tokens drawn anew") == [2 * 192 + 4, 192]
    screenshot(page, artifacts / f"browser_{name[:2]}_{'vue' if vue else 'canvas'}.png")
    assert page.evaluate(OVERLAPS) == []


PLACES = """() => Object.fromEntries(window.app.graph.nodes.map(node => [node.id, [...node.pos]]))"""


def test_vue_pages_keep_the_layout_of_every_workflow(page: Page) -> None:
    """Opened one after the other: all distances grow by the same factor, and nothing covers anything."""
    set_renderer(page, True)
    for path, _ in stored_pairs():
        page.evaluate("async text => window.app.loadGraphData(JSON.parse(text))", path.read_text("utf-8"))
        page.wait_for_timeout(1500)
        places = page.evaluate(PLACES)
        stored = {str(node["id"]): node["pos"] for node in read_json(path)["nodes"]}
        first, *others = stored
        for axis in (0, 1):
            for other in others:
                told = stored[other][axis] - stored[first][axis]
                found = places[other][axis] - places[first][axis]
                assert min(abs(found - factor * told) for factor in (1.0, 1.2)) < 10, (path.name, other)
        assert page.evaluate(OVERLAPS) == [], path.name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "03_inpaint_no_download",
            "07_vary_no_download",
            "08_image_to_image_no_download",
            "09_scales_strip_no_download",
        ),
        *("12_prompt_per_stage_no_download", "13_regional_prompts_no_download", "14_lora_no_download"),
        *("30_artwork_no_download", "31_artwork_faster_no_download", "32_artwork_inpaint_no_download"),
        "33_artwork_draft_pick_finish_no_download",
    ],
)
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_workflow_ends_in_pictures_beside_each_other(
    page: Page, artifacts: Path, name: str, vue: bool
) -> None:
    set_renderer(page, vue)
    drop(page, name, 4781 + vue)
    shows = "SaveAnimatedWEBP" if name.startswith("09") else "SaveImage"
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, arg=shows, timeout=5 * MINUTE)
    page.wait_for_timeout(1000)
    screenshot(page, artifacts / f"browser_{name[:2]}_{'vue' if vue else 'canvas'}.png")
    if name.startswith("07"):
        page.wait_for_function(SHOWN_IMAGE, arg="Variations side by side", timeout=MINUTE)
        assert page.evaluate(SHOWN_IMAGE, "Variations side by side") == [2 * 192 + 4] * 2
    if name.startswith("09"):
        assert page.evaluate(SHOWN_IMAGE, "PreviewImage") == [7 * 128 + 6 * 4, 128]
    assert page.evaluate(OVERLAPS) == []
    assert not page.locator(".p-toast-message-error").all_inner_texts()


PICK = """number => {
    const node = window.app.graph.nodes.find(found => found.type === 'LatentFromBatch');
    node.widgets.find(widget => widget.name === 'batch_index').value = number;
}"""
SHOWN_SOURCES = """type => {
    const node = window.app.graph.nodes.find(found => found.type === type);
    const drawn = [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)];
    return (node.imgs?.length ? node.imgs : drawn).map(image => image.src);
}"""


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_another_number_finishes_another_draft(
    page: Page, comfy_server: ComfyServer, artifacts: Path, vue: bool
) -> None:
    set_renderer(page, vue)
    drop(page, "06_draft_pick_finish_no_download", 815 + vue)
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, timeout=5 * MINUTE)
    page.wait_for_function(SHOWN_IMAGE, arg="PreviewImage", timeout=MINUTE)
    assert page.evaluate(OVERLAPS) == []
    said = page.evaluate(SAID)
    assert "as a draft of 96 x 96" in said["StageVARSampler"][0]
    assert any("goes on from" in line for line in said["StageVARContinue"])
    before = page.evaluate(SHOWN_SOURCES, "SaveImage")
    page.evaluate(PICK, 3)
    page.keyboard.press("Control+Enter")
    changed = f"([type, before]) => ({SHOWN_SOURCES})(type)[0] && ({SHOWN_SOURCES})(type)[0] !== before"
    page.wait_for_function(changed, arg=["SaveImage", before[0]], timeout=5 * MINUTE)
    screenshot(page, artifacts / f"browser_drafts_{'vue' if vue else 'canvas'}.png")
    last = list(comfy_server.get("/history").values())[-1]
    cached = next(data for name, data in last["status"]["messages"] if name == "execution_cached")
    prompt = last["prompt"][2]
    assert sampler_node(prompt) in cached["nodes"]
    assert not page.locator(".p-toast-message-error").all_inner_texts()


CHOOSE = """async ([language, vue]) => {
    await window.app.extensionManager.setting.set('Comfy.Locale', language);
    await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue);
}"""
# What the page shows of a new node, beside the names that it stores.
NAMED = """type => {
    const node = window.LiteGraph.createNode(type);
    return JSON.stringify({
        title: node.title,
        widgets: node.widgets.map(widget => [widget.name, widget.label]),
        inputs: node.inputs.map(input => [input.name, input.localized_name]),
        outputs: node.outputs.map(output => output.localized_name),
    });
}"""
STORED_VALUES = """() => JSON.stringify(window.app.graph.serialize().nodes.map(
    node => [node.id, node.type, node.widgets_values]))"""


def search(page: Page, words: str) -> list[str]:
    """What the node search finds, by the names that it shows; it stays open."""
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = page.locator(".comfy-vue-node-search-container input")
    box.wait_for(timeout=MINUTE)
    box.fill(words)
    page.wait_for_timeout(1000)
    return [name.strip() for name in page.locator(".option-display-name").all_inner_texts()]


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_page_speaks_chinese_and_workflows_stay(page: Page, artifacts: Path, vue: bool) -> None:
    """Names change on the page alone: what is sent and stored is the same as in English.

    The page of 0.3.75 forgets the translations of packs when it loads a language; it stays English.
    """
    path = shipped_workflow("06_draft_pick_finish_no_download", api=False)
    workflow = read_json(path)
    page.evaluate(CHOOSE, ["zh", vue])
    try:
        page.reload(wait_until="commit")
        page.wait_for_timeout(2000)
        page.wait_for_function(READY, timeout=2 * MINUTE)
        found = {
            language: read_json(ROOT / "locales" / language / "nodeDefs.json") for language in ("en", "zh")
        }
        title = json.loads(page.evaluate(NAMED, "StageVARSampler"))["title"]
        nodes = found["zh" if title == found["zh"]["StageVARSampler"]["display_name"] else "en"]
        for kind in ("StageVARSampler", "StageVARAccelerate", "StageVARContinue"):
            shown, known = json.loads(page.evaluate(NAMED, kind)), nodes[kind]
            names = {name: said["name"] for name, said in known["inputs"].items()}
            assert shown["title"] == known["display_name"] and dict(shown["inputs"]) == names
            assert all(names.get(name, label) == label for name, label in shown["widgets"])
            assert shown["outputs"] == [said["name"] for said in known["outputs"].values()]
        sent = json.loads(page.evaluate(CONVERT, path.read_text(encoding="utf-8")))
        assert without_titles(sent) == without_titles(read_json(path.parent / "api" / path.name))
        values = [[node["id"], node["type"], node.get("widgets_values")] for node in workflow["nodes"]]
        kept = json.loads(page.evaluate(STORED_VALUES))
        assert [node for node in kept if node[1].startswith("StageVAR")] == [
            node for node in values if node[1].startswith("StageVAR")
        ]
        screenshot(page, artifacts / f"browser_zh_{'vue' if vue else 'canvas'}.png")
    finally:
        page.evaluate(CHOOSE, ["en", False])


BLUEPRINT = "Fast Text to Image (StageVAR)"
# The widgets that the node of a blueprint shows, by the names that they have inside.
OUTER = """() => {
    const made = window.app.graph.nodes.find(node => node.subgraph);
    const named = widget => [widget.name.replace(/^\\d+: /, ''), widget.value];
    return JSON.stringify(Object.fromEntries(made.widgets.map(named)));
}"""
SAVE = """() => {
    const made = window.app.graph.nodes.find(node => node.subgraph);
    const save = window.LiteGraph.createNode('SaveImage');
    window.app.graph.add(save);
    save.pos = [made.pos[0] + made.size[0] + 100, made.pos[1]];
    made.connect(0, save, 0);
}"""


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_blueprint_is_found_and_makes_a_picture(page: Page, artifacts: Path, vue: bool) -> None:
    set_renderer(page, vue)
    page.evaluate("() => window.app.graph.clear()")
    assert [found.splitlines()[0].strip() for found in search(page, "Fast Text")] == [BLUEPRINT]
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.app.graph.nodes.some(node => node.subgraph)", timeout=MINUTE)
    page.evaluate(SAVE)
    before = json.loads(page.evaluate(OUTER))
    assert list(before) == [
        *("text", "seed", "control_after_generate", "width", "height", "preset", "model_name")
    ]
    page.keyboard.press("Control+Enter")
    page.wait_for_function(SHOWN_IMAGE, timeout=5 * MINUTE)
    assert page.evaluate(SHOWN_IMAGE) == [128, 128]
    after = {name: value for name, value in json.loads(page.evaluate(OUTER)).items() if "preview" not in name}
    assert after.pop("seed") != before.pop("seed") and after == before
    screenshot(page, artifacts / f"browser_blueprint_{'vue' if vue else 'canvas'}.png")
    assert not page.locator(".p-toast-message-error").all_inner_texts()
