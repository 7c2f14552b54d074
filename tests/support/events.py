"""A websocket client that records what ComfyUI reports during a run, and edits for API workflows."""

from __future__ import annotations

import io
import json
import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import websocket
from PIL import Image
from testbed.comfy_server import ComfyServer, Json

PREVIEW, PREVIEW_WITH_METADATA = 1, 4
Event = tuple[str, Json]


class Watcher:
    """One connected client: queue prompts with `client_id` and collect their events."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.client_id = uuid.uuid4().hex
        self.events: list[Event] = []
        self.previews: list[Image.Image] = []

    def __enter__(self) -> Watcher:
        address = f"ws://127.0.0.1:{self.server.port}/ws?clientId={self.client_id}"
        self.socket = websocket.create_connection(address, timeout=120)
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        self.socket.send(json.dumps(flags))
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def queue(self, prompt: Json) -> str:
        """Queues a prompt for this client."""
        return self.server.queue(prompt, self.client_id)

    def until(self, wanted: Callable[[str, Json], bool], timeout: float = 300) -> Event:
        """Records events up to the first one that is wanted, and returns that."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            message = self.socket.recv()
            if isinstance(message, bytes):
                self._record_preview(message)
                continue
            event = json.loads(message)
            self.events.append((event["type"], event.get("data") or {}))
            if wanted(*self.events[-1]):
                return self.events[-1]
        raise AssertionError(f"event missing after {timeout} s; the last ones: {self.events[-5:]}")

    def until_end(self, prompt_id: str) -> Event:
        """Records events until the prompt has succeeded, failed or been interrupted."""
        ends = {"execution_success", "execution_error", "execution_interrupted"}
        return self.until(lambda name, data: name in ends and data.get("prompt_id") == prompt_id)

    def data_of(self, name: str) -> list[Json]:
        """The data of all recorded events of one type."""
        return [data for found, data in self.events if found == name]

    def _record_preview(self, message: bytes) -> None:
        kind = struct.unpack(">I", message[:4])[0]
        if kind == PREVIEW:
            start = 8  # event type, image format
        elif kind == PREVIEW_WITH_METADATA:
            start = 8 + struct.unpack(">I", message[4:8])[0]  # event type, length of the JSON, the JSON
        else:
            return
        self.previews.append(Image.open(io.BytesIO(message[start:])).convert("RGB"))


# --- edits of API workflows ---


def with_value(prompt: Json, name: str, value: Any) -> int:
    """Sets an input by name wherever a node has it as a plain value; returns the number of places."""
    places = [node["inputs"] for node in prompt.values() if name in node["inputs"]]
    places = [inputs for inputs in places if not isinstance(inputs[name], list)]
    for inputs in places:
        inputs[name] = value
    return len(places)


def value_of(prompt: Json, name: str) -> Any:
    """The plain value of an input, from the first node that has it."""
    found = [node["inputs"][name] for node in prompt.values() if name in node["inputs"]]
    return next(value for value in found if not isinstance(value, list))


def add_node(prompt: Json, class_type: str, **inputs: Any) -> list[Any]:
    """Adds a node; returns the link to its first output."""
    node = str(max(int(known) for known in prompt if known.isdigit()) + 1)
    prompt[node] = {"class_type": class_type, "inputs": inputs}
    return [node, 0]


# --- images ---


def saved_images(server: ComfyServer, entry: Json, node: str | None = None) -> list[np.ndarray]:
    """The saved images of a finished prompt, or of one of its nodes, as (H, W, 3) in 0..1."""
    outputs = {node: entry["outputs"][node]} if node else entry["outputs"]
    files = [server.view(image) for image in server.images({"outputs": outputs})]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    return [np.asarray(picture, dtype=np.float32) / 255 for picture in pictures]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images in 0..1."""
    return float(-10 * np.log10(np.mean((a - b) ** 2) + 1e-12))
