"""Fixtures of the tests that talk to a real ComfyUI."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed.comfy_server import ComfyServer, Json, read_json, shipped_workflow

from tests.support.events import Watcher

WORKFLOW = "01_text_to_image_no_download"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, so that `-m "not comfy"` gives the quick tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfy)


@pytest.fixture(scope="session")
def stored_prompt() -> Json:
    """The shipped workflow in API format, as stored."""
    return read_json(shipped_workflow(WORKFLOW))


@pytest.fixture
def prompt(stored_prompt: Json) -> Json:
    """The shipped workflow in API format, to be changed freely."""
    return copy.deepcopy(stored_prompt)


@pytest.fixture
def watcher(comfy_server: ComfyServer) -> Iterator[Watcher]:
    """A client that records the server's events."""
    with Watcher(comfy_server) as connected:
        yield connected
