"""A headless ComfyUI process with this pack as its only custom node, spoken to over HTTP.

Used by the quickstart and by the tests, so it needs nothing beyond the standard library.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .environment import ROOT

PACK_NAME = "ComfyUI-StageVAR"
# What a copied pack leaves behind where the system has no symbolic links.
NOT_IN_PACK = (".git", ".venv", ".testbed", "output", "__pycache__", ".pytest_cache", ".ruff_cache")
BASE_FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user/default/workflows")
# Without these settings the first visit is covered by the template browser.
BROWSER_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
IMPORT_TROUBLE = re.compile(r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint|Traceback")

Json = dict[str, Any]


class ServerError(RuntimeError):
    """ComfyUI did not start, died, or refused a request."""


class PromptRejected(ServerError):
    """The server's validation refused a prompt; `details` is its whole answer."""

    def __init__(self, details: Json) -> None:
        self.details = details
        problems = [details.get("error", {}).get("message", "")]
        for node, found in details.get("node_errors", {}).items():
            errors = found.get("errors", [])
            problems += [f"node {node}: {e.get('message')} ({e.get('details')})" for e in errors]
        super().__init__("; ".join(filter(None, problems)))


class PromptFailed(ServerError):
    """A prompt ended in an error or an interrupt; `messages` are the events of its history."""

    def __init__(self, messages: list[tuple[str, Json]]) -> None:
        self.messages = messages
        self.interrupted = any(name == "execution_interrupted" for name, _ in messages)
        errors = [data.get("exception_message", "") for name, data in messages if name == "execution_error"]
        super().__init__("interrupted" if self.interrupted else "; ".join(errors) or "the prompt failed")


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_base_directory(base: Path, pack: Path = ROOT) -> Path:
    """Creates the folders ComfyUI expects and links the pack into them; returns the pack's place there."""
    for folder in BASE_FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps(BROWSER_SETTINGS), encoding="utf-8")
    place = base / "custom_nodes" / PACK_NAME
    if place.is_symlink() or place.exists():
        return place
    try:
        place.symlink_to(pack, target_is_directory=True)
    except OSError:  # Windows without the privilege to link
        shutil.copytree(pack, place, ignore=shutil.ignore_patterns(*NOT_IN_PACK))
    return place


class ComfyServer:
    """Starts ComfyUI on a free port, waits until it answers, and stops it again.

    Use it as a context manager. `base` is kept when given, else a temporary folder that goes with the server.
    """

    def __init__(
        self,
        python: Path,
        comfy_path: Path,
        base: Path | None = None,
        *,
        pack: Path = ROOT,
        flags: list[str] | None = None,
        port: int | None = None,
        start_timeout: float = 240.0,
    ) -> None:
        self.python, self.comfy_path, self.pack = Path(python), Path(comfy_path), pack
        self.temporary = base is None
        self.base = base or Path(tempfile.mkdtemp(prefix="stagevar-comfy-"))
        self.flags = flags if flags is not None else default_flags(self.python)
        self.port = port or free_port()
        self.start_timeout = start_timeout
        self.log_path = self.base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.startup_log = ""  # what the process printed until it was ready

    # --- life cycle ---

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> ComfyServer:
        """Starts the process and returns when it answers."""
        make_base_directory(self.base, self.pack)
        command = [str(self.python), "-u", "main.py", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--disable-api-nodes", "--disable-auto-launch"]
        command += ["--preview-method", "auto", "--database-url", "sqlite:///:memory:", *self.flags]
        environment = os.environ | {"PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
        with self.log_path.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                cwd=self.comfy_path,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop(keep_files=True)
            raise
        return self

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                code = self.process.returncode
                raise ServerError(f"ComfyUI ended while starting (exit {code}).\n{self.log_tail()}")
            try:
                self.get("/system_stats", timeout=5)
                self.startup_log = self.log_text()
                return
            except OSError:
                time.sleep(0.3)
        raise ServerError(f"ComfyUI did not answer within {self.start_timeout:.0f} s.\n{self.log_tail()}")

    def stop(self, keep_files: bool = False) -> None:
        """Ends the process and removes a temporary base folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(15)
        if self.temporary and not keep_files:
            link = self.base / "custom_nodes" / PACK_NAME
            if link.is_symlink():  # never let the removal reach through the link into the checkout
                link.unlink()
            shutil.rmtree(self.base, ignore_errors=True)

    # --- the log ---

    def log_text(self) -> str:
        """Everything the process printed so far."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def log_tail(self, lines: int = 40) -> str:
        """The end of the log, for error messages."""
        tail = self.log_text().splitlines()[-lines:]
        return "\n".join([f"--- end of {self.log_path} ---", *tail])

    def import_problems(self) -> list[str]:
        """Log lines that say our pack did not load."""
        text = self.startup_log
        lines = [line for line in text.splitlines() if IMPORT_TROUBLE.search(line) and PACK_NAME in line]
        if lines and "Traceback" in text:
            start = text.index("Traceback")
            lines += text[start : start + 3000].splitlines()
        return lines

    # --- HTTP ---

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}"

    def request(self, path: str, body: Json | None = None, timeout: float = 60) -> bytes:
        """GET, or POST when there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str, timeout: float = 60) -> Any:
        """The JSON answer of a route."""
        return json.loads(self.request(path, timeout=timeout) or "null")

    def memory_mib(self) -> float:
        """Resident memory of the process; 0 where the system does not tell (no /proc)."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return 0.0
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def object_info(self, node: str | None = None) -> Json:
        """The schemas of all nodes, or of one."""
        return self.get("/object_info" + (f"/{urllib.parse.quote(node)}" if node else ""))

    def queue(self, prompt: Json, client_id: str = "", workflow: Json | None = None) -> str:
        """Queues a workflow in API format; returns its id."""
        body: Json = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            return json.loads(self.request("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            text = error.read()
            try:
                details = json.loads(text)
            except ValueError:
                raise ServerError(f"POST /prompt answered {error.code}: {text[:500]!r}") from error
            raise PromptRejected(details) from error

    def wait(self, prompt_id: str, timeout: float = 600, tick: Callable[[], None] | None = None) -> Json:
        """The history entry of a finished prompt; raises PromptFailed for an error or an interrupt."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI died (exit {self.process.returncode}).\n{self.log_tail()}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status", {}).get("status_str") == "error":
                raise PromptFailed([(name, data) for name, data in entry["status"].get("messages", [])])
            if entry and entry.get("status", {}).get("completed"):
                return entry
            if tick is not None:
                tick()
            time.sleep(0.1)
        raise ServerError(f"The prompt was not finished after {timeout:.0f} s.\n{self.log_tail()}")

    def run(self, prompt: Json, timeout: float = 600) -> Json:
        """Queues a workflow and waits for its history entry."""
        return self.wait(self.queue(prompt), timeout)

    def images(self, entry: Json) -> list[Json]:
        """The saved images a history entry names (no previews)."""
        found = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        return [image for image in found if image.get("type") == "output"]

    def view(self, image: Json) -> bytes:
        """The file of an image named by a history entry."""
        query = {key: image[key] for key in ("filename", "subfolder", "type") if key in image}
        return self.request("/view?" + urllib.parse.urlencode(query))

    def interrupt(self) -> None:
        """Asks the running prompt to stop."""
        self.request("/interrupt", {})


def default_flags(python: Path) -> list[str]:
    """`--cpu` where PyTorch sees no accelerator, so that ComfyUI does not fail looking for one."""
    probe = (
        "import torch; xpu = getattr(torch, 'xpu', None);"
        "print(torch.cuda.is_available() or torch.backends.mps.is_available() or xpu and xpu.is_available())"
    )
    result = subprocess.run([str(python), "-c", probe], capture_output=True, text=True)
    return [] if result.stdout.strip() == "True" else ["--cpu"]


# --- workflows in API format ---


def nodes_of(prompt: Json, class_type: str) -> list[str]:
    """The ids of the nodes of one class."""
    return [node for node, data in prompt.items() if data.get("class_type") == class_type]


def only_node(prompt: Json, class_type: str) -> str:
    """The id of the single node of a class."""
    found = nodes_of(prompt, class_type)
    if len(found) != 1:
        raise ServerError(f"The workflow has {len(found)} {class_type} nodes; expected one.")
    return found[0]


def sampler_node(prompt: Json) -> str:
    """The id of the pack's sampler."""
    return only_node(prompt, "StageVARSampler")


def positive_text_node(prompt: Json) -> str:
    """The id of the text node that feeds the sampler's positive input, through any node in between."""
    link = prompt[sampler_node(prompt)]["inputs"]["positive"]
    while isinstance(link, list):
        node = prompt[link[0]]
        if "text" in node["inputs"]:
            return link[0]
        link = next((value for value in node["inputs"].values() if isinstance(value, list)), None)
    raise ServerError("The workflow's sampler has no text prompt.")


def shipped_workflow(name: str, api: bool = True) -> Path:
    """Where a workflow of this pack is stored: the page's own format, or its API twin."""
    places = [ROOT / "workflows" / f"{name}.api.json", ROOT / "workflows" / "api" / f"{name}.json"]
    if not api:
        places = [ROOT / "workflows" / f"{name}.json"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ServerError(f"The workflow {places[0].relative_to(ROOT)} is missing from this checkout.")
    return found


def read_json(path: Path) -> Json:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
